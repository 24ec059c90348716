"""A leg through a SOCKS5 server: UDP ASSOCIATE (RFC 1928 sections 4, 6 and 7).

An association lives as long as the TCP connection that asked for it. That connection is
kept apart from the leg (``Control``), so that one can be made ready before a client needs it,
with the socket that will carry its datagrams, and a lost one be replaced beneath a client that
notices nothing but a gap.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from socket import SocketType
from typing import Final, Protocol

from gateway.errors import ProtocolError, UpstreamFailure
from gateway.flow import Endpoint
from gateway.kernel.datagrams import Batch, Way
from gateway.kernel.reactor import HANGUP, READ_HANGUP, Reactor
from gateway.kernel.sockets import keep_alive
from gateway.outbound.base import Requester, failure_of
from gateway.outbound.datagrams import Leg, LegOwner, Route
from gateway.outbound.handshake import Socks5Attempt
from gateway.wire.socks5 import ClientHandshake
from gateway.wire.socks5_udp import (
    FragmentError,
    decode_header,
    encode_header,
    header_size,
    relay_address,
)

#: For connect and handshake (seconds).
CONNECT_S: Final = 10.0
#: An association that ends sooner (seconds) is replaced at most so often in a row: the spare
#: may have died with it, but a server that hangs up at once is not to be asked for ever.
LASTING_S: Final = 1.0
REPLACED_AT_MOST: Final = 2

#: Begins the connection, for a handshake that is to be carried out on it.
Connector = Callable[[Requester, ClientHandshake], Socks5Attempt | None]
#: Is told whether an association was granted, and whether that is what the server replied.
Learner = Callable[[bool, bool], None]
#: Opens the socket for datagrams to a relay. Raises ``OSError``.
RelayOpener = Callable[[Endpoint], SocketType]


class ControlUser(Protocol):
    """Who waits for a control connection, and then lives by it."""

    def control_ready(self, control: Control) -> None:
        """The server has granted an association."""

    def control_lost(self, control: Control, failure: UpstreamFailure, detail: str) -> None:
        """There is none, or none any more."""


class Control:
    """One TCP connection that an association is tied to; silent, so that the kernel watches it.

    ``datagrams`` is the socket for them, connected to the server's relay, once that is granted;
    who takes it sets it to None. ``learn`` is told whether the server grants any, and whether it
    says so: where it has accepted us, it has refused this, or only hung up on it.
    """

    __slots__ = (
        "_attempt", "_handshake", "_learn", "_open_relay", "_reactor", "_server", "_sock", "_timer",
        "datagrams", "ready", "user",
    )  # fmt: skip

    def __init__(
        self,
        reactor: Reactor,
        server: Endpoint,
        user: ControlUser,
        learn: Learner,
        open_relay: RelayOpener,
    ) -> None:
        self._reactor = reactor
        self._server = server
        self._learn = learn
        self._open_relay = open_relay
        self._attempt: Socks5Attempt | None = None
        self._sock: SocketType | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._handshake: ClientHandshake | None = None
        self.datagrams: SocketType | None = None
        self.ready = False
        self.user = user

    def begin(self, connector: Connector, handshake: ClientHandshake) -> None:
        """Connect and ask."""
        self._handshake = handshake
        self._timer = self._reactor.call_later(CONNECT_S, self._expire)
        self._attempt = connector(self, handshake)

    def first_bytes(self) -> bytes:
        """Nothing follows the request."""
        return b""

    def connected(
        self, upstream: SocketType, surplus: bytes, sent: int = 0, edges: int = 0
    ) -> None:
        """It is granted."""
        del surplus, sent
        assert self._handshake is not None
        self._attempt = None
        self._stop_timer()
        self._sock = upstream
        self._reactor.hand_over(upstream.fileno(), self)
        self._learn(True, True)
        try:
            keep_alive(upstream)
            self.datagrams = self._open_relay(relay_address(self._handshake.bound, self._server))
        except OSError as error:
            self.close()
            self.user.control_lost(self, failure_of(error), error.strerror or str(error))
            return
        self.ready = True
        self.user.control_ready(self)
        if edges & (HANGUP | READ_HANGUP) and self._sock is not None:
            self.on_ready(upstream.fileno(), edges)

    def failed(self, failure: UpstreamFailure, detail: str, replied: bool = False) -> None:
        """It is not."""
        self._attempt = None
        self._stop_timer()
        if self._handshake is not None and self._handshake.accepted:
            self._learn(False, replied)
        self.user.control_lost(self, failure, detail)

    def on_ready(self, fd: int, events: int) -> None:
        """What the server says is of no interest; that it ends is."""
        del fd
        assert self._sock is not None
        over = events & (HANGUP | READ_HANGUP)
        try:
            over = over or not self._sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            over = True
        if over:
            self.close()
            detail = "the server ended the association"
            self.user.control_lost(self, UpstreamFailure.RESET, detail)

    def abort(self) -> None:
        """End after a bug."""
        self.close()

    def close(self) -> None:
        """End it; nobody is told."""
        self._stop_timer()
        if self._attempt is not None:
            self._attempt.cancel()
            self._attempt = None
        if self._sock is not None:
            self._reactor.close(self._sock)
            self._sock = None
        if self.datagrams is not None:
            self.datagrams.close()
            self.datagrams = None

    def _expire(self) -> None:
        self._timer = None
        self.close()
        detail = "the upstream did not answer in time"
        self.user.control_lost(self, UpstreamFailure.TIMEOUT, detail)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


#: Gives a control connection to its user: one that is ready, or one that is begun now.
Provider = Callable[[ControlUser], Control]


class Association(Leg):
    """A client's leg through one SOCKS server.

    One of each address family: servers bind a socket of the family that they see first,
    and are silent about the other.
    """

    __slots__ = ("_control", "_provide", "_replaced", "_since")

    def __init__(self, reactor: Reactor, batch: Batch, owner: LegOwner, provide: Provider) -> None:
        super().__init__(reactor, batch, owner)
        self._provide = provide
        self._since = 0.0
        self._replaced = 0
        self._control: Control | None = None

    def open(self) -> None:
        """Begin; ``leg_failed`` may be called before this returns."""
        control = self._provide(self)
        if control.ready and self._control is None:
            self.control_ready(control)
        elif self._control is None:
            self._control = control

    def way(self, target: Endpoint, route: Route) -> Way:
        """By a header in front of each datagram."""
        header = encode_header(target)
        self.routes[header] = route
        return Way(header, None)

    def close(self) -> None:
        """End the association."""
        if self._control is not None:
            self._control.close()
            self._control = None
        super().close()

    def control_ready(self, control: Control) -> None:
        """Use its socket."""
        sock, control.datagrams = control.datagrams, None
        assert sock is not None
        self._control = control
        self._since = time.monotonic()
        self._open_for_use(sock)

    def control_lost(self, control: Control, failure: UpstreamFailure, detail: str) -> None:
        """Ask for another one; what cannot be had, or does not last, is given up."""
        if time.monotonic() - self._since >= LASTING_S:
            self._replaced = 0
        self._control = None
        self._close_socket()
        if not control.ready or self._replaced >= REPLACED_AT_MOST:
            self._fail(failure, detail)
            return
        self._replaced += 1
        self._owner.leg_dropped("association-lost")
        self.open()

    def _deliver(self, count: int) -> None:
        batch, routes = self._batch, self.routes
        slot = 0
        while slot < count:
            data = batch.data(slot)
            try:
                size = header_size(data)
            except ProtocolError:
                size = 0
            header = bytes(data[:size])
            if not size or (batch.segment(slot) and not batch.alike(slot, header)):
                self._deliver_apart(slot)
                slot += 1
                continue
            end = slot + 1
            while end < count and batch.alike(end, header):
                end += 1
            route = routes.get(header) or self._learn(header)
            if route is not None:
                route.down(batch, slot, end, size)
            slot = end

    def _deliver_apart(self, slot: int) -> None:
        """A train whose datagrams come from several far ends, or what is not well-formed."""
        for data in self._batch.datagrams(slot):
            try:
                size = header_size(data)
            except FragmentError:
                self._owner.leg_dropped("fragment")
                continue
            except ProtocolError:
                self._owner.leg_dropped("malformed")
                continue
            header = bytes(data[:size])
            route = self.routes.get(header) or self._learn(header)
            if route is not None:
                route.down_one(self._batch, data[size:])

    def _learn(self, header: bytes) -> Route | None:
        """The route of a header that none has: of somebody new, or of a known one otherwise."""
        try:
            remote = decode_header(header)
        except ProtocolError:
            self._owner.leg_dropped("malformed")
            return None
        route = self._owner.stranger(remote)
        if route is not None:
            self.routes[header] = route
        return route
