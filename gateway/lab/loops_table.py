"""The matrix of loop strategies as people read it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.lab.cells import Cell
from gateway.lab.lab import Lab
from gateway.lab.loops import PARTS, Found, chosen, run
from gateway.lab.trials import Outcome

#: Where there is no terminal, Rich takes 80 columns, which would break cells.
_LOG_COLUMNS: Final = 130
_COLOURS: Final = {Outcome.DIRECT: "green", Outcome.LOOP: "yellow"}
_LEGEND: Final = (
    "arrives: once, and the server saw whom it should. loops: the gateway's own packets came back"
    " (meant where nothing prevents it). refused: at once, and the gateway says why."
    " no answer: lost. Two words stand for IPv4 / IPv6."
)


def listing() -> str:
    """The parts, each with what it shows."""
    width = max(map(len, PARTS))
    return "\n".join(f"{name:<{width}}  {part.title}" for name, part in PARTS.items())


def show(names: Sequence[str], *, as_json: bool = False, details: bool = False) -> bool:
    """Try these parts (all, if there are none), and print what came of it.

    True where all is as it should be. How far it is goes to standard error, with ``details``
    of every cell. Raises ``GatewayError`` where it cannot begin.
    """
    wanted = chosen(names)
    Lab.sweep()  # what a killed run has left
    progress = Console(stderr=True, highlight=False)
    done: list[Found] = []
    with progress.status("") as status:

        def begin(found: Found) -> None:
            status.update(_heading(found, wanted))
            if details:
                progress.print(_heading(found, wanted))

        def tell(cell: Cell) -> None:
            if details or not cell.ok:
                progress.print(line(cell), soft_wrap=True)
            status.update(f"{len(wanted) - len(done)} to go; {escape(_named(cell))}")

        for found in run(wanted, begin, tell):
            done.append(found)
            progress.print(_result(found, wanted), soft_wrap=True)
    wrong = sum(found.wrong for found in done)
    if as_json:
        print(json.dumps({"ok": not wrong, "parts": [f.as_json() for f in done]}, indent=2))
    else:
        _print(done, wrong)
    return not wrong


def _heading(found: Found, wanted: Sequence[str]) -> str:
    return f"{wanted.index(found.name) + 1} of {len(wanted)}: {escape(found.title)}"


def _result(found: Found, wanted: Sequence[str]) -> str:
    verdict = "[red]FAIL[/red]" if found.wrong else "[green]ok[/green]  "
    text = f"{verdict} {_heading(found, wanted)}: {len(found.cells)} tried"
    return f"{text}; not finished: {escape(found.error)}" if found.error else text


def _print(done: Sequence[Found], wrong: int) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _LOG_COLUMNS
    for found in done:
        console.print(f"\n[bold]{escape(found.title)}[/bold]")
        if found.cells:
            console.print(table(found))
        if found.error:
            console.print(f"[red]not finished:[/red] {escape(found.error)}")
    console.print(_LEGEND)
    tried = sum(len(found.cells) for found in done)
    console.print(f"\n{tried} tried, {wrong} not as they should be")
    for found in done:
        for cell in found.cells:
            if not cell.ok:
                console.print(line(cell), soft_wrap=True)


def line(cell: Cell) -> str:
    """One cell, with what was seen, and what should have been."""
    verdict = "[green]ok[/green]  " if cell.ok else "[red]FAIL[/red]"
    text = f"{_named(cell)}: {cell.seen}"
    if cell.detail:
        text += f" ({cell.detail})"
    if not cell.ok:
        wanted = cell.expected_peer or cell.expected_words
        text += f"; expected: {cell.expected}" + (f" ({wanted})" if wanted else "")
    return f"  {verdict} {escape(text)}"


def _named(cell: Cell) -> str:
    return f"{cell.technique}, {cell.situation}, IPv{cell.family}"


def table(found: Found) -> Table:
    """A row for each situation, a column for each technique; both families in one field."""
    techniques = list(dict.fromkeys(cell.technique for cell in found.cells))
    shown = Table(box=SIMPLE_HEAD)
    for head in ("", *techniques):
        shown.add_column(head)
    for situation in dict.fromkeys(cell.situation for cell in found.cells):
        at = [cell for cell in found.cells if cell.situation == situation]
        fields = (_field([cell for cell in at if cell.technique == each]) for each in techniques)
        shown.add_row(situation, *fields)
    return shown


def _field(both: Sequence[Cell]) -> str:
    outcomes = list(dict.fromkeys(cell.seen for cell in both))
    text = escape(" / ".join(outcomes))
    if not all(cell.ok for cell in both):
        return f"[red]{text} (!)[/red]"
    colour = _COLOURS.get(outcomes[0]) if len(outcomes) == 1 else None
    return f"[{colour}]{text}[/{colour}]" if colour else text
