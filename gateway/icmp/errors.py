"""ICMP errors into the TUN: what the gateway tells, and what the network told it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from gateway.flow import Endpoint
from gateway.icmp.limits import Rate
from gateway.kernel.error_queue import Told
from gateway.wire.icmp_error import IcmpError
from gateway.wire.icmp_packet import error_packet, raw_error_packet, sent_datagram
from gateway.wire.ip import Buffer

#: As many a second as the kernel itself tells (icmp(7), ``icmp_msgs_per_sec``), and of these
#: to one device.
MOST_PER_S: Final = 1000
MOST_PER_DEVICE: Final = 250

#: Takes a packet to where the LAN is.
Write = Callable[[bytes], object]


class ErrorWriter:
    """Tells senders of packets of errors, a bounded number in a second.

    ``own``: addresses of this machine. The kernel takes no packet from the TUN that says to
    come from there, so errors that the machine itself met are told in the name of whom the
    sender wanted to reach. ``hops``: by family, as which the gateway itself is a hop.
    """

    def __init__(
        self,
        write: Write,
        own: frozenset[str],
        counters: Counter[str],
        hops: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        self.own = own
        self._hops = hops
        self._write = write
        self._counters = counters
        self._rate = Rate()

    def tell(self, about: Buffer, error: IcmpError, *, info: int = 0) -> bool:
        """Tell the sender of a packet; False: it was not told, which is counted."""
        return self._send(error_packet(about, error, info=info))

    def expired(self, about: Buffer) -> bool:
        """Tell the sender of a packet that it goes no further than this hop."""
        hop = self._hops.get(about[0] >> 4, "")
        return self._send(error_packet(about, IcmpError.TIME_EXCEEDED, source=hop))

    def pass_on(self, about: Buffer, told: Told) -> bool:
        """Tell the sender of a packet what the network says of it."""
        source = "" if told.host in self.own else told.host
        kind = (told.kind, told.code)
        return self._send(raw_error_packet(about, kind, info=told.info, source=source))

    def tell_of_datagram(
        self, error: IcmpError, client: Endpoint, remote: Endpoint, mtu: int = 0, host: str = ""
    ) -> bool:
        """Tell the client of a UDP flow, in the name of ``host``, or else of the far end."""
        about = sent_datagram(client.host, remote.host, (client.port, remote.port))
        source = "" if host in self.own else host
        return self._send(error_packet(about, error, info=mtu, source=source))

    def _send(self, packet: bytes | None) -> bool:
        if packet is None:
            self._counters["icmp_errors_unsent"] += 1
            return False
        # The device that is told, as the packet's destination has it.
        device = packet[16:20].hex() if packet[0] >> 4 == 4 else packet[24:40].hex()
        if not self._rate.allows(device, MOST_PER_S, MOST_PER_DEVICE, time.monotonic()):
            self._counters["icmp_errors_unsent"] += 1
            return False
        self._counters["icmp_errors_sent"] += 1
        self._write(packet)
        return True
