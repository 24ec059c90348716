"""UDP in the TUN: packets read there reach the conversations that TPROXY's datagrams do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gateway.inbound.udp import Desk
from gateway.kernel.datagrams import SLOTS, Batch
from gateway.kernel.udp_sockets import ends_of
from gateway.wire.ip import (
    GSO_UDP_L4,
    NEEDS_CSUM,
    UDP,
    IpPacket,
    Malformed,
    Vnet,
    read_udp,
    transport_checksum,
)

_HEADER: Final = 8
#: Hosts send with 64 or more, and probes of a path with 30 at most.
_COUNTED: Final = 32


class TunUdp:
    """Takes the UDP packets of a device; a ``PacketHandler``.

    ``is_own``: whether an address (packed) is this machine's. ``expired``: tells the sender of a
    packet that it goes no further.
    """

    def __init__(
        self, desk: Desk, is_own: Callable[[bytes], bool], expired: Callable[[memoryview], object]
    ) -> None:
        self._desk = desk
        self._is_own = is_own
        self._expired = expired
        self._batch = Batch()
        #: Whether some rule asks for the DSCP of datagrams.
        self.tells_dscp = False
        self._ends = b""
        self._held = 0

    def take(self, ip: IpPacket, vnet: Vnet, packet: memoryview) -> str | None:
        """Hold a datagram, or a train of them, for ``flush``; why it was dropped."""
        udp = read_udp(packet, ip)
        if isinstance(udp, Malformed):
            return udp
        # What this machine sends has not been forwarded into the TUN, so its hop is counted here:
        # whatever goes round ends.
        if ip.ttl <= 1 and self._is_own(ip.source):
            self._expired(packet)
            return "udp_expired"
        start, end, step = ip.transport + _HEADER, ip.transport + udp.length, 0
        if vnet.gso_type == GSO_UDP_L4:
            end, step = ip.end, vnet.gso_size
        elif not vnet.flags & NEEDS_CSUM and not _is_right(ip, udp.checksum, packet, end):
            return "udp_checksum"
        dscp = ip.traffic_class >> 2 if self.tells_dscp else None
        ends = ends_of(ip.source, udp.source, ip.destination, udp.destination, dscp)
        # Whoever counts hops (traceroute) is to see them all; nobody else is so near.
        hop_limit = ip.ttl if ip.ttl < _COUNTED else 0
        if ends != self._ends or hop_limit:
            self.flush()
            self._ends = ends
        self._batch.put(self._held, packet[start:end], step, hop_limit)
        self._held += 1
        if self._held == SLOTS or hop_limit:
            self.flush()
        return None

    def flush(self) -> None:
        """Hand on what is held: datagrams of one client to one far end, in one go."""
        held, self._held = self._held, 0
        if not held:
            return
        desk, batch, ends = self._desk, self._batch, self._ends
        conversation = desk.known.get(ends) or desk.arrived(ends, batch, 0)
        if conversation is not None:
            conversation.up(batch, 0, held)
        if begun := desk.begun:
            desk.begun = []
            for each in begun:
                each.expect_answer()

    @property
    def dropped(self) -> int:
        """Datagrams that could not be sent onward."""
        return self._batch.dropped

    def expire(self, now: float) -> None:
        """Nothing is remembered here."""

    def close(self) -> None:
        """Nothing is held here."""


def _is_right(ip: IpPacket, check: int, packet: memoryview, end: int) -> bool:
    """Whether the checksum is; IPv4 may do without one (RFC 768), IPv6 not (RFC 8200)."""
    if not check:
        return ip.family == 4
    data = bytes(packet[ip.transport : end])
    # That of what has a right one is 0, which UDP writes so.
    return transport_checksum(ip.source, ip.destination, UDP, data) == 0xFFFF
