"""Tells clients, by ICMP, what became of their datagrams: in the name of who they talked to."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Final

from gateway.flow import Endpoint
from gateway.kernel.udp_sockets import UdpSockets
from gateway.wire.icmp_error import IcmpError, encode

#: As much as the kernel itself says in a second (icmp(7), ``icmp_msgs_per_sec``).
MOST_PER_S: Final = 1000


class ErrorSender:
    """Sends ICMP errors, a bounded number of them in a second."""

    def __init__(self, sockets: UdpSockets) -> None:
        self._sockets = sockets
        self._second = 0
        self._left = MOST_PER_S

    def tell_of_datagram(
        self, error: IcmpError, client: Endpoint, remote: Endpoint, mtu: int = 0, host: str = ""
    ) -> bool:
        """Say that what ``client`` sent to ``remote`` met ``error``; False: it was not said.

        In the name of ``host``, or else of ``remote``.
        """
        now = time.monotonic()
        if int(now) != self._second:
            self._second, self._left = int(now), MOST_PER_S
        if not self._left:
            return False
        self._left -= 1
        with suppress(OSError):  # a client that cannot be reached, or no CAP_NET_RAW
            sock = self._sockets.open_icmp(host or remote.host)
            try:
                sock.sendto(encode(error, client, remote, mtu), (client.host, 0))
            finally:
                sock.close()
            return True
        return False
