"""The way into a TUN device that routes lead to; what is written to it goes the other way.

Source: packet(7).
"""

from __future__ import annotations

import socket
from typing import Final

from gateway.wire.ip import Buffer

#: <linux/if_ether.h>.
_ETH_P_IP: Final = 0x0800
_ETH_P_IPV6: Final = 0x86DD


class TunEntrance:
    """Sends packets to a device as the kernel does: each comes to the queue that it is for."""

    def __init__(self, name: str) -> None:
        """Of the device ``name``; it has a socket once there is something to send."""
        self._name = name
        self._sock: socket.socket | None = None

    def send(self, packet: Buffer) -> None:
        """Send a whole packet, checksums and all.

        Raises ``OSError``: EMSGSIZE beyond the MTU, EPERM without CAP_NET_RAW, EAFNOSUPPORT where
        the kernel has no packet sockets.
        """
        if self._sock is None:
            # Without a protocol: it receives nothing.
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        kind = _ETH_P_IPV6 if packet[0] >> 4 == 6 else _ETH_P_IP
        self._sock.sendto(packet, (self._name, kind))

    def close(self) -> None:
        """Let the socket go."""
        if self._sock is not None:
            self._sock.close()
