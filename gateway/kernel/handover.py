"""Descriptors from one of our processes to another (unix(7), SCM_RIGHTS)."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from gateway.errors import GatewayError


class Handover:
    """One end of a pair; what is given at one end is taken at the other, in order."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @classmethod
    def pair(cls) -> tuple[Handover, Handover]:
        """Both ends."""
        one, other = socket.socketpair()
        return cls(one), cls(other)

    @classmethod
    def inherited(cls, fd: int) -> Handover:
        """The end that a parent has left open under this number."""
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        """Its descriptor."""
        return self._sock.fileno()

    def give(self, fd: int) -> None:
        """Give a copy of a descriptor. One that nobody takes any more is dropped."""
        with suppress(ConnectionError):
            socket.send_fds(self._sock, [b"\0"], [fd])

    def take(self) -> int:
        """The next descriptor, ours from here on. Raises ``GatewayError`` where there is none."""
        _, fds, *_ = socket.recv_fds(self._sock, 1, 1)
        if not fds:
            raise GatewayError("a descriptor was announced, and none came")
        os.set_inheritable(fds[0], False)
        return fds[0]

    def close(self) -> None:
        """Close this end."""
        self._sock.close()
