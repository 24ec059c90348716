"""Which of the flows that come in are those of sockets that this process has opened."""

from __future__ import annotations

from socket import SocketType
from typing import Final

from gateway.flow import Endpoint

#: Sockets are noted until so many are, at least; then those that have been closed are left out.
LEAST: Final = 256

_Key = tuple[int, Endpoint, Endpoint | None]


class OwnSockets:
    """The sockets that outbounds have opened, by their ends, for as long as they are open.

    However a leg came to be: for a flow, for a pool, or in place of one that failed. Nothing
    is noted unless it is ``wanted``: to know a socket's own end takes a system call.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._socks: dict[_Key, SocketType] = {}
        self._full = LEAST

    def __len__(self) -> int:
        """How many are open."""
        return sum(sock.fileno() >= 0 for sock in self._socks.values())

    def note(self, sock: SocketType, local: Endpoint, remote: Endpoint | None) -> None:
        """Know a socket's packets, should they come back. ``remote`` None: to anywhere."""
        if len(self._socks) >= self._full:
            live = {key: one for key, one in self._socks.items() if one.fileno() >= 0}
            self._socks, self._full = live, max(LEAST, 2 * len(live))
        self._socks[sock.type, local, remote] = sock

    def sent(self, kind: int, source: Endpoint, destination: Endpoint) -> bool:
        """Whether a flow is that of a socket of ours. ``kind``: SOCK_STREAM or SOCK_DGRAM.

        Both ends count: programs of this machine may use a port of ours towards another
        destination.
        """
        anywhere = Endpoint("::" if ":" in source.host else "0.0.0.0", source.port)  # noqa: S104
        return any(
            sock is not None and sock.fileno() >= 0
            for sock in (
                self._socks.get((kind, source, destination)),
                self._socks.get((kind, source, None)),
                self._socks.get((kind, anywhere, None)),
            )
        )
