"""``socks5``: through a SOCKS5 server (RFC 1928, RFC 1929)."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

from gateway.errors import UpstreamFailure
from gateway.flow import Endpoint, FlowFacts
from gateway.kernel.reactor import Reactor
from gateway.kernel.sockets import SocketFactory, SocketOptions
from gateway.outbound.base import Attempt, ConnectAttempt, Requester, open_socket
from gateway.outbound.manners import Handshake, Manners, Trial
from gateway.wire.socks5 import ClientHandshake, Credentials, Socks5Error

#: A handshake's bytes fit many times over; what a server sends behind it is read too.
_READ_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Socks5Outbound:
    """One SOCKS5 server, at one address."""

    name: str
    reactor: Reactor
    factory: SocketFactory
    server: Endpoint
    options: SocketOptions
    credentials: Credentials | None = None
    handshake: Handshake = "strict"
    manners: Manners = field(default_factory=Manners)

    def open(self, facts: FlowFacts, requester: Requester) -> Attempt | None:
        """Begin to connect to the server, and through it to the flow's destination."""
        if self.handshake == "auto" and self.manners.unknown:
            return Trial.begin(
                self.manners,
                self.reactor,
                requester,
                lambda runner, pipelined: self._attempt(facts, runner, pipelined=pipelined),
            )
        pipelined = self.handshake == "pipelined" or self.manners.pipelining is True
        return self._attempt(facts, requester, pipelined=pipelined)

    def _attempt(
        self, facts: FlowFacts, requester: Requester, *, pipelined: bool
    ) -> Attempt | None:
        handshake = ClientHandshake(facts.destination, self.credentials, pipelined=pipelined)
        sock = open_socket(self.factory, self.server, self.options, requester)
        if sock is None:
            return None
        return _Socks5Attempt(self.reactor, requester, sock, self.server, handshake)


class _Socks5Attempt(ConnectAttempt):
    """Connect, then the handshake.

    What is sent is a few dozen bytes into an empty send buffer, so a short write
    cannot happen on a socket that works.
    """

    __slots__ = ("_handshake",)

    def __init__(
        self,
        reactor: Reactor,
        requester: Requester,
        sock: socket.socket,
        server: Endpoint,
        handshake: ClientHandshake,
    ) -> None:
        super().__init__(reactor, requester, sock, server)
        self._handshake = handshake

    def _on_connected(self) -> None:
        self._sock.send(self._handshake.opening())

    def _on_readable(self) -> None:
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
            if self._handshake.established:
                self._succeed(self._handshake.surplus)
                return
            if answer:
                self._sock.send(answer)
            if len(data) < _READ_BYTES and not self._hung_up:
                return  # drained: what comes next has an edge of its own
