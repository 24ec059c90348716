"""ICMP errors about TCP flows of the TUN: the kernel's own stack is told of them.

Routers quote a packet as it reached them: in the far end's name, to the client. The kernel knows
its connections by other ends, so it is told anew, about these (RFC 5508 section 4.2 has this of
address translators). Without, a flow would stand still whose client is behind a link that takes
less than others: the listener would send for ever what is too big.
"""

from __future__ import annotations

from collections import Counter

from gateway.inbound.tun import PacketHandler, TunWriter
from gateway.inbound.tun_tcp import TunTcp
from gateway.wire.icmp_packet import address_text, icmp_packet, read_error
from gateway.wire.ip import TCP, IpPacket, Vnet


class TunErrors:
    """Takes the ICMP of both families; what is not about a TCP flow is ``others``'."""

    def __init__(
        self, tcp: TunTcp, writer: TunWriter, counters: Counter[str], others: PacketHandler
    ) -> None:
        self._tcp = tcp
        self._writer = writer
        self._counters = counters
        self._others = others

    def take(self, ip: IpPacket, vnet: Vnet, packet: memoryview) -> str | None:
        """See ``PacketHandler``."""
        error = read_error(ip, packet)
        if error is not None and error.protocol == TCP:
            ends = self._tcp.listened(ip.family, error.ends)
            if ends is not None:
                half = len(ip.source)
                own, peer = address_text(ends[:half]), address_text(ends[half:-4])
                self._writer.write(icmp_packet(peer, own, error.about(ends)))
                self._counters["tun_tcp_told"] += 1
                return None
        return self._others.take(ip, vnet, packet)

    def expire(self, now: float) -> None:
        """See ``PacketHandler``."""
        self._others.expire(now)

    def close(self) -> None:
        """See ``PacketHandler``."""
        self._others.close()
