"""Ways out: how each outbound's sockets leave, and what of policy routing that takes.

One value for each way says it all, so that what is planned, what the loop guard proves and
what the sockets do cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from gateway.marks import Mark
from gateway.plan.addresses import Family
from gateway.plan.model import IpRule, Route

Strategy = Literal["mark", "device", "source", "host_route", "uid", "cgroup", "netns"]
Entry = IpRule | Route
#: Where the guard looks for an outbound that goes anywhere: documentation addresses, which are
#: routed as the rest of the Internet is (RFC 5737, RFC 3849). Looked up, never sent to.
ANYWHERE: Final = ("192.0.2.1", "2001:db8::1")


@dataclass(frozen=True, slots=True)
class Egress:
    """A way that an outbound's sockets go: where to, and with which socket options.

    ``destination`` is an address; ``port`` is the upstream's, None for any. ``uplink`` is the
    interface that the packets must leave by, ``via`` the gateway there. ``entries`` is what
    must stand in the kernel for that. ``uid`` runs the server, which is on this machine.
    ``problem`` and ``cure`` say why this way cannot be gone now.
    """

    outbound: str
    destination: str
    mark: Mark | None = None
    device: str | None = None
    source: str | None = None
    port: int | None = None
    strategy: Strategy = "mark"
    netns: str | None = None
    uid: int | None = None
    cgroup: str | None = None
    uplink: str | None = None
    via: str | None = None
    entries: tuple[Entry, ...] = ()
    problem: str = ""
    cure: str = ""

    @property
    def family(self) -> Family:
        """Address family of the destination."""
        return family_of(self.destination)

    @property
    def how(self) -> str:
        """The strategy, and by what."""
        by = {
            "device": self.device,
            "source": self.source,
            "netns": self.netns,
            "uid": self.uid,
            "cgroup": self.cgroup,
        }.get(self.strategy)
        return self.strategy if by is None else f"{self.strategy} {by}"


def family_of(address: str) -> Family:
    """Address family of an address in text form."""
    return Family.V6 if ":" in address else Family.V4


def entries(ways: Iterable[Egress]) -> tuple[Entry, ...]:
    """What all of them need in the kernel, each once."""
    return tuple(dict.fromkeys(entry for way in ways for entry in way.entries))
