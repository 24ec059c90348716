"""One connection to a SOCKS5 server: connect, then the handshake."""

from __future__ import annotations

import time
from collections.abc import Callable
from socket import SocketType

from gateway.errors import UpstreamFailure
from gateway.flow import Endpoint
from gateway.kernel.reactor import IN, Reactor
from gateway.outbound.base import ConnectAttempt, Requester
from gateway.wire.socks5 import ClientHandshake, Socks5Error

#: A handshake's bytes fit many times over; what a server sends behind it is read too.
_READ_BYTES = 16 << 10

#: Told once, when the server has accepted us, how long that took from the start (seconds).
OnAccepted = Callable[[float], None]


class Socks5Attempt(ConnectAttempt):
    """Connect, then the handshake; without a target it waits for ``ask`` before the request.

    What it sends itself is a few hundred bytes at most: only a SYN may be too small for them
    (TCP Fast Open); the rest then follows once the connection is up. ``eager``: the client's
    first bytes go right behind the request, as far as they fit.
    """

    __slots__ = ("_eager", "_handshake", "_on_accepted", "_sent", "_started", "_unsent")

    def __init__(
        self,
        reactor: Reactor,
        requester: Requester,
        sock: SocketType,
        handshake: ClientHandshake,
        on_accepted: OnAccepted | None,
        *,
        eager: bool,
    ) -> None:
        super().__init__(reactor, requester, sock)
        self._handshake = handshake
        self._on_accepted = on_accepted
        self._eager = eager
        self._sent = 0
        self._unsent = b""
        self._started = time.monotonic()

    @property
    def replied(self) -> bool:
        """Whether the server has said anything of the request."""
        return self._handshake.replied

    def _is_answer(self, failure: UpstreamFailure) -> bool:
        del failure
        return self.replied

    def ask(self, target: Endpoint) -> None:
        """Send the request that it waits for.

        Raises ``OSError`` where the connection has failed, ``ValueError`` as
        ``encode_address`` does.
        """
        self._request(self._handshake.request(target))

    def _request(self, data: bytes) -> None:
        """Send what ends with the request, and what may follow it."""
        first = self._requester.first_bytes() if self._eager else b""
        sent = self._sock.send(data + first)
        self._unsent = data[sent:]
        self._sent = max(0, sent - len(data))

    def _on_connected(self) -> None:
        opening = self._handshake.opening()
        if self._handshake.asked:
            self._request(opening)
        else:
            self._sock.send(opening)

    def _on_readable(self) -> None:
        if self._unsent:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]
        while True:
            data = self._sock.recv(_READ_BYTES)
            if not data:
                self._fail(UpstreamFailure.RESET, "the server closed during the handshake")
                return
            try:
                answer = self._handshake.feed(data)
            except Socks5Error as error:
                cure = f" ({error.hint})" if error.hint else ""
                self._fail(error.failure, f"{error}{cure}")
                return
            if answer:
                self._sock.send(answer)
            if self._on_accepted is not None and self._handshake.accepted:
                self._on_accepted(time.monotonic() - self._started)
                self._on_accepted = None
            drained = len(data) < _READ_BYTES and self._drained
            if drained:
                self._edges &= ~IN
            if self._handshake.established:
                self._succeed(self._handshake.surplus, self._sent)
                return
            if drained:
                return
