"""What routers of the LAN tell, by ICMP, of packets that were made here in a far end's name.

They quote a packet as it reached them: from the far end, to the client. Of a TCP flow the kernel
knows other ends, so its own stack is told anew, about these (RFC 5508 section 4.2 has this of
address translators). Of datagrams and echo replies, that they were too big is kept in mind here.
Without, nothing would get through whose client is behind a link that takes less than others.
"""

from __future__ import annotations

import time
from collections import Counter

from gateway.inbound.tun import PacketHandler, TunWriter
from gateway.inbound.tun_tcp import TunTcp
from gateway.wire.icmp_packet import QuotedError, address_text, icmp_packet, read_error
from gateway.wire.ip import TCP, IpPacket, Vnet
from gateway.wire.path_mtu import PathMtus


class TunErrors:
    """Takes the ICMP of both families; what is nothing of this is ``others``'."""

    def __init__(
        self,
        tcp: TunTcp,
        paths: PathMtus,
        writer: TunWriter,
        counters: Counter[str],
        others: PacketHandler,
    ) -> None:
        self._tcp = tcp
        self._paths = paths
        self._writer = writer
        self._counters = counters
        self._others = others

    def take(self, ip: IpPacket, vnet: Vnet, packet: memoryview) -> str | None:
        """See ``PacketHandler``."""
        error = read_error(ip, packet)
        if error is not None and self._is_told(ip, error):
            return None
        return self._others.take(ip, vnet, packet)

    def expire(self, now: float) -> None:
        """See ``PacketHandler``."""
        self._paths.expire(now)
        self._others.expire(now)

    def close(self) -> None:
        """See ``PacketHandler``."""
        self._others.close()

    def _is_told(self, ip: IpPacket, error: QuotedError) -> bool:
        half = len(ip.source)
        if error.protocol != TCP:
            mtu, client = error.too_big, error.ends[half : 2 * half]
            if mtu and self._paths.tell(client, mtu, time.monotonic()):
                self._counters["tun_path_told"] += 1
            return mtu > 0
        ends = self._tcp.listened(ip.family, error.ends)
        if ends is None:
            return False
        own, peer = address_text(ends[:half]), address_text(ends[half:-4])
        self._writer.write(icmp_packet(peer, own, error.about(ends)))
        self._counters["tun_tcp_told"] += 1
        return True
