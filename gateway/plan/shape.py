"""The choices that shape the chains and the routing of a plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from gateway.flow import Protocol
from gateway.marks import Mark, Marks
from gateway.plan.addresses import Family, Network
from gateway.plan.matches import InControlGroup, OwnedBy, Transport
from gateway.plan.tun import TunShape
from gateway.plan.verdicts import Queue

_UDP: Final = Transport((Protocol.UDP,))


@dataclass(frozen=True, slots=True)
class Shape:
    """What is diverted from whom, by which way, and what is left alone.

    ``lan``: interfaces whose traffic is diverted; ``own``: this machine's too.
    ``upstreams``: SOCKS servers that live in the LAN, by family. ``preserve_source``: some
    outbound uses its client's address, so replies to it must come to our sockets.
    ``programs``: whose own traffic is left alone, proxies on this machine that we use.
    ``queue``: the packet queues that decide what the kernel cannot. ``owner_marks``: what
    rules put on the packets of direct flows. ``marking``: packets carry a mark on their way
    through the rules, which ends where they are decided.
    ``otherwise``: sources in the LAN that do not follow ``fail_open`` but the contrary.
    ``tun``: the device that takes some protocols instead of the listener. ``hops``: packets can
    be told that may not be forwarded.
    """

    marks: Marks
    port: int
    tproxy: bool
    fail_open: bool
    lan: tuple[str, ...]
    own: bool
    families: tuple[Family, ...]
    upstreams: dict[Family, tuple[Network, ...]]
    preserve_source: bool = False
    udp: bool = False
    programs: tuple[OwnedBy | InControlGroup, ...] = ()
    owner_marks: tuple[Mark, ...] = ()
    queue: Queue | None = None
    marking: bool = False
    otherwise: dict[Family, tuple[Network, ...]] = field(default_factory=dict)
    tun: TunShape | None = None
    captures: bool = False
    hops: bool = True

    @property
    def shortcut(self) -> bool:
        """Whether packets of established transparent sockets are looked for."""
        return bool(self.lan) and (self.tproxy or self.preserve_source)

    @property
    def redirect(self) -> bool:
        """Whether TCP reaches its listener by REDIRECT."""
        return not self.tproxy and (self.tun is None or Protocol.TCP not in self.tun.protocols)

    @property
    def carried(self) -> tuple[Protocol, ...]:
        """What is taken from the LAN, by listeners or the TUN."""
        tun = () if self.tun is None else self.tun.protocols
        return tuple(p for p in Protocol if p in tun or p in self._listened)

    @property
    def listened(self) -> Transport | None:
        """What listeners take."""
        return Transport(self._listened) if self._listened else None

    @property
    def by_tproxy(self) -> Transport | None:
        """What of it reaches them by TPROXY."""
        return self.listened if self.tproxy else _UDP if self.udp else None

    @property
    def _listened(self) -> tuple[Protocol, ...]:
        tcp = (Protocol.TCP,) if self.tproxy or self.redirect else ()
        return (*tcp, Protocol.UDP) if self.udp else tcp
