"""Tells clients, by ICMP, what became of their datagrams: in the name of who they talked to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from gateway.flow import Endpoint
from gateway.kernel.udp_sockets import UdpSockets
from gateway.wire.icmp_error import IcmpError, encode


class ErrorSender:
    """Sends ICMP errors, as many as each device ``may_be_told``."""

    def __init__(self, sockets: UdpSockets, may_be_told: Callable[[str], bool]) -> None:
        self._sockets = sockets
        self._may_be_told = may_be_told

    def tell_of_datagram(
        self, error: IcmpError, client: Endpoint, remote: Endpoint, mtu: int = 0, host: str = ""
    ) -> bool:
        """Say that what ``client`` sent to ``remote`` met ``error``; False: it was not said.

        In the name of ``host``, or else of ``remote``.
        """
        if not self._may_be_told(client.host):
            return False
        with suppress(OSError):  # a client that cannot be reached, or no CAP_NET_RAW
            sock = self._sockets.open_icmp(host or remote.host)
            try:
                sock.sendto(encode(error, client, remote, mtu), (client.host, 0))
            finally:
                sock.close()
            return True
        return False
