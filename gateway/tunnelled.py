"""Who takes what is not TCP in a TUN: UDP and ICMP have a pipeline each, and others none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count

from gateway.blueprint import Blueprint
from gateway.icmp.echoes import Echoes
from gateway.icmp.errors import ErrorWriter
from gateway.icmp.flow import EchoFlow
from gateway.icmp.others import OtherProtocols
from gateway.inbound.tun import PacketHandler, TunWriter
from gateway.inbound.tun_udp import TunUdp
from gateway.kernel.reactor import Reactor
from gateway.kernel.tun import TunSettings
from gateway.relay.tun_replies import TunReplies
from gateway.routing import Routing
from gateway.udp.dispatcher import Datagrams
from gateway.udp.face import Face
from gateway.wire.fragments import split
from gateway.wire.icmp_error import IcmpError
from gateway.wire.icmp_packet import address_text
from gateway.wire.ip import Buffer
from gateway.wire.path_mtu import LEAST, PathMtus


class Tunnelled:
    """Takes what a device gives besides TCP. ``face``: as what ``datagrams`` speak by it.

    ``on_closed`` is told of echo flows that end; they are numbered as ``flow_ids`` say.
    """

    def __init__(
        self,
        reactor: Reactor,
        plan: Blueprint,
        settings: TunSettings,
        writer: TunWriter,
        routing: Routing,
        datagrams: Datagrams,
        on_closed: Callable[[EchoFlow], None],
        flow_ids: tuple[int, int],
    ) -> None:
        self._writer = writer
        self.paths = PathMtus(settings.mtu)
        self._numbers = count()
        self._counters: Counter[str] = Counter()
        hops = {4: str(settings.ipv4.ip + 1), 6: str(settings.ipv6.ip + 1)}
        self._errors = ErrorWriter(self._write, plan.own.addresses, self._counters, hops)
        self.echoes = Echoes(
            reactor,
            routing,
            plan.echo,
            plan.own,
            self._errors,
            self._write,
            on_closed,
            mtu=settings.mtu,
            detect_loops=plan.detect_loops,
            flow_ids=flow_ids,
        )
        self.udp = TunUdp(datagrams, self._is_own, self._errors.expired)
        self.udp.tells_dscp = routing.policy.needs.dscp
        self.face = Face(TunReplies(writer, self.paths, segments=writer.segments), self._errors)
        self.others: PacketHandler = OtherProtocols(self._errors)

    @property
    def counters(self) -> Counter[str]:
        """Totals since the start."""
        unsent = Counter(udp_dropped_unsent=self.udp.dropped)
        return self._counters + self.echoes.counters + unsent

    def adopt(self, plan: Blueprint, routing: Routing) -> None:
        """Go on by another blueprint; live flows stay as they are."""
        self.udp.tells_dscp = routing.policy.needs.dscp
        self.echoes.adopt(routing, plan.echo, plan.own)
        self._errors.own = plan.own.addresses

    def refuse(self, packet: Buffer) -> None:
        """Tell the sender of a packet that it may not go on."""
        self._errors.tell(packet, IcmpError.PROHIBITED)

    def _is_own(self, packed: bytes) -> bool:
        return address_text(packed) in self._errors.own

    def _write(self, packet: bytes) -> None:
        """Write a packet that a host would send: as fragments, where it has to be."""
        if packet[0] >> 4 == 4 or len(packet) <= LEAST:
            self._writer.write(packet)
            return
        for piece in split(packet, self.paths.of(packet[24:40]), next(self._numbers)):
            self._writer.write(piece)
