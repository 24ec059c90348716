"""Every way out of a routing loop, tried: without it, with it, and while the network changes.

``gateway lab loops`` prints what this yields, and the tests assert it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, NamedTuple

from gateway.config.findings import did_you_mean
from gateway.errors import GatewayError
from gateway.lab.cells import Cell
from gateway.lab.halves import Halves
from gateway.lab.lab import Lab
from gateway.lab.ladder import ladder
from gateway.lab.metrics import outbid
from gateway.lab.namespaces import require_root
from gateway.lab.own_traffic import own_datagrams, own_traffic
from gateway.lab.own_tun import OwnTun
from gateway.lab.process import LabError
from gateway.lab.programs import Programs, server_here
from gateway.lab.replaced import replaced_default
from gateway.lab.written_back import written_back


class Part(NamedTuple):
    """A part of the matrix; it needs a lab of its own, with its servers running."""

    title: str
    cells: Callable[[Lab], Iterator[Cell]]


PARTS: Final[dict[str, Part]] = {
    "halves": Part(
        "A VPN has taken 0/1 and 128/1 of the main table",
        lambda lab: Halves(lab, ours=False).run(),
    ),
    "own-halves": Part(
        "Our own TUN has taken 0/1 and 128/1 of the main table (split_default)",
        lambda lab: Halves(lab, ours=True).run(),
    ),
    "ladder": Part("All but the marked goes into a TUN, by the ladder of ip rules", ladder),
    "default-route": Part(
        "Our own TUN takes the default route, of this machine and the LAN (suppress)",
        lambda lab: OwnTun(lab).default_route(),
    ),
    "prefixes": Part(
        "Our own TUN takes some prefixes, with a server in one of them",
        lambda lab: OwnTun(lab).prefixes(),
    ),
    "subnets": Part("Our own TUN takes one subnet of two", lambda lab: OwnTun(lab).by_subnet()),
    "own-traffic": Part(
        "This machine's own traffic is diverted",
        lambda lab: chain(own_traffic(lab), own_datagrams(lab)),
    ),
    "programs": Part(
        "The proxy is a program on this machine, whose own traffic is diverted",
        lambda lab: Programs(lab).run(),
    ),
    "server-here": Part("The proxy listens on loopback, and the uplink is bound to", server_here),
    "marked": Part(
        "Beside our own TUN, what a user sends is marked by a rule of netfilter",
        lambda lab: OwnTun(lab).marked_by_netfilter(),
    ),
    "replaced": Part(
        "Another program has put its TUN in the place of the default route", replaced_default
    ),
    "outbid": Part("Another program's TUN has a default route with a better metric", outbid),
    "written-back": Part("A packet that nobody can carry comes out of a TUN", written_back),
}

#: What the matrix runs, by the package of Debian that has it.
_TOOLS: Final = {
    "conntrack": "conntrack",
    "curl": "curl",
    "microsocks": "microsocks",
    "nft": "nftables",
    "ping": "iputils-ping",
    "prlimit": "util-linux",
    "setpriv": "util-linux",
    "ss": "iproute2",
}


@dataclass(slots=True)
class Found:
    """What came of a part: its cells, and why it ended before its time."""

    name: str
    cells: list[Cell] = field(default_factory=list)
    error: str = ""

    @property
    def title(self) -> str:
        """What it shows, for people."""
        return PARTS[self.name].title

    @property
    def wrong(self) -> int:
        """How many cells are not as they should be; a part that was not finished counts, too."""
        return sum(not cell.ok for cell in self.cells) + bool(self.error)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        cells = [cell.as_json() for cell in self.cells]
        return {"part": self.name, "title": self.title, "cells": cells, "error": self.error}


def chosen(names: Sequence[str]) -> list[str]:
    """The parts of these names, all if there are none. Raises ``GatewayError``.

    That is for a name that is none, or for what the lab cannot do without.
    """
    for name in names:
        if name not in PARTS:
            raise GatewayError(
                f"there is no part {name}", did_you_mean(name, PARTS, "parts of the matrix")
            )
    require_root()
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        packages = " ".join(dict.fromkeys(_TOOLS[tool] for tool in missing))
        raise LabError(f"the matrix needs {', '.join(missing)}", f"apt install {packages}")
    return list(dict.fromkeys(names)) or list(PARTS)


def run(
    names: Iterable[str],
    begun: Callable[[Found], object],
    told: Callable[[Cell], object],
) -> Iterator[Found]:
    """Each part, once it is done. ``begun`` before its lab is built, ``told`` of each cell.

    Whoever leaves in between (Ctrl-C) leaves no lab behind.
    """
    for name in names:
        found = Found(name)
        begun(found)
        try:
            with Lab() as lab, closing(_cells(lab, name)) as cells:
                for cell in cells:
                    found.cells.append(cell)
                    told(cell)
        except GatewayError as error:
            found.error = str(error)
        yield found


def _cells(lab: Lab, name: str) -> Generator[Cell, None, None]:
    lab.start_servers()
    yield from PARTS[name].cells(lab)
