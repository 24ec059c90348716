"""Every way out of a routing loop, tried: without it, with it, and while the network changes.

``gateway lab loops`` prints what this yields, and the tests assert it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.lab.cells import Cell
from gateway.lab.lab import Lab
from gateway.lab.own_traffic import Programs, own_traffic
from gateway.lab.own_tun import OwnTun
from gateway.lab.replaced import interface_group, replaced_default
from gateway.lab.uplinks import SplitDefault, ladder

#: The parts of the matrix; each needs a lab of its own, with its servers running.
PARTS: Final[dict[str, Callable[[Lab], Iterator[Cell]]]] = {
    "split default": lambda lab: SplitDefault(lab).run(),
    "ladder": ladder,
    "own traffic": own_traffic,
    "programs": lambda lab: Programs(lab).run(),
    "replaced default": replaced_default,
    "interface group": interface_group,
    "own TUN": lambda lab: OwnTun(lab).default_route(),
    "prefixes": lambda lab: OwnTun(lab).prefixes(),
    "marked": lambda lab: OwnTun(lab).marked_by_netfilter(),
}

#: What each part shows, for people.
TITLES: Final = {
    "split default": "A VPN has taken 0/1 and 128/1 of the main table",
    "ladder": "All but the marked goes into a TUN, by the ladder of ip rules",
    "own traffic": "This machine's own traffic is diverted",
    "programs": "The proxy is a program on this machine, whose own traffic is diverted",
    "replaced default": "Another program has put its TUN in the place of the default route",
    "own TUN": "Our own TUN takes the default route, of this machine and the LAN",
    "prefixes": "Our own TUN takes some prefixes, with a server in one of them",
    "marked": "Beside our own TUN, what a user sends is marked by a rule of netfilter",
    "interface group": "Another program's TUN has the better default route, which a rule drops",
}


def show(*, as_json: bool) -> bool:
    """Print the matrix as it comes to be known; whether all is as it should be. Needs root."""
    found: list[tuple[str, Cell]] = []
    report = Console(stderr=as_json, highlight=False)
    for part, cell in cells():
        if not found or found[-1][0] != part:
            report.print(f"[bold]{TITLES[part]}[/bold]")
        found.append((part, cell))
        report.print(_line(cell), soft_wrap=True)
    wrong = sum(not cell.ok for _, cell in found)
    if as_json:
        listed = [{"part": part, **cell.as_json()} for part, cell in found]
        print(json.dumps({"ok": not wrong, "cells": listed}, indent=2))
    else:
        for part, title in TITLES.items():
            report.print(_table(title, [cell for of, cell in found if of == part]))
        report.print(f"{len(found)} tried, {wrong} not as they should be")
    return not wrong


def _line(cell: Cell) -> str:
    verdict = "[green]ok[/green]  " if cell.ok else "[red]FAIL[/red]"
    return escape(
        f"{cell.technique}, {cell.situation}, IPv{cell.family}: {cell.seen}"
        + (f" ({cell.detail})" if cell.detail else "")
    ).join((f"  {verdict} ", ""))


def _table(title: str, found: Sequence[Cell]) -> Table:
    """A row for each technique, a column for each situation; both families in one field."""
    situations = list(dict.fromkeys(cell.situation for cell in found))
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for head in ("technique", *situations):
        table.add_column(head)
    for technique in dict.fromkeys(cell.technique for cell in found):
        fields = []
        for situation in situations:
            seen = [c for c in found if (c.technique, c.situation) == (technique, situation)]
            fields.append(_field(seen))
        table.add_row(technique, *fields)
    return table


def _field(cells_of_both: Sequence[Cell]) -> str:
    outcomes = list(dict.fromkeys(cell.seen.value for cell in cells_of_both))
    text = escape(" / ".join(outcomes))
    return text if all(cell.ok for cell in cells_of_both) else f"[red]{text}[/red]"


def cells() -> Iterator[tuple[str, Cell]]:
    """Every cell with the part it is of, as soon as it is known. Needs root."""
    for name, part in PARTS.items():
        with Lab() as lab:
            lab.start_servers()
            for found in part(lab):
                yield name, found
