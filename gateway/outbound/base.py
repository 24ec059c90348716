"""What every outbound is: something that opens the second leg of a flow."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from enum import StrEnum
from socket import SocketType
from typing import ClassVar, Final, Protocol

from gateway.errors import UpstreamFailure
from gateway.flow import Endpoint, FlowFacts
from gateway.kernel.datagrams import Batch
from gateway.kernel.ping_sockets import PingSocket
from gateway.kernel.reactor import ERROR, HANGUP, IN, OUT, READ_HANGUP, UNKNOWN, URGENT, Reactor
from gateway.kernel.sockets import SocketFactory, SocketOptions, pending_error
from gateway.outbound.datagrams import Leg, LegOwner

_FAILURES = {
    errno.ECONNREFUSED: UpstreamFailure.REFUSED,
    errno.ETIMEDOUT: UpstreamFailure.TIMEOUT,
    errno.ECONNRESET: UpstreamFailure.RESET,
    errno.EPIPE: UpstreamFailure.RESET,
    errno.EMFILE: UpstreamFailure.RESOURCES,
    errno.ENFILE: UpstreamFailure.RESOURCES,
    errno.ENOBUFS: UpstreamFailure.RESOURCES,
    errno.ENOMEM: UpstreamFailure.RESOURCES,
}

_ANSWERS = frozenset({UpstreamFailure.REFUSED, UpstreamFailure.RESET})

_ENDS: Final = ERROR | HANGUP
#: A read stops short at what comes behind these: the FIN, or the mark of urgent data (tcp(7)).
_BEHIND: Final = READ_HANGUP | URGENT | _ENDS

#: At most so much of what the client has sent goes with a handshake.
FIRST_BYTES: Final = 16 << 10


class Requester(Protocol):
    """Who asked for a leg: ``connected`` or ``failed`` is called, once, unless cancelled before."""

    def first_bytes(self) -> bytes:
        """What the client has sent already, at most ``FIRST_BYTES`` of it; never waits.

        To look takes nothing away: a leg that fails has lost nothing of the flow's.
        """

    def connected(
        self, upstream: SocketType, surplus: bytes, sent: int = 0, edges: int = UNKNOWN
    ) -> None:
        """The leg is up, still watched by the reactor.

        ``surplus`` came with its handshake; so many of ``first_bytes`` are ``sent``.
        ``edges`` have been told of it and not served: 0 where it has been read to its end.
        """

    def failed(self, failure: UpstreamFailure, detail: str, replied: bool = False) -> None:
        """There is no leg; its socket is closed.

        ``replied``: the way out works, and this is what it, or the destination, answers.
        """


class Attempt(Protocol):
    """A leg that is being opened."""

    @property
    def member(self) -> str:
        """The member of a group that it goes by (``vpn``, ``eu>home``); empty without a group."""

    def cancel(self) -> None:
        """Give up, close, call nobody."""


class EchoRefusal(StrEnum):
    """Why an outbound sends no echo request onward. The values stand in names of counters."""

    NOT_CARRIED = "not-carried"
    REJECTED = "rejected"
    SILENT = "silent"
    UNREACHABLE = "unreachable"
    RESOURCES = "no-resources"


class Outbound(Protocol):
    """A way out, by name."""

    @property
    def name(self) -> str:
        """The name that rules use."""

    @property
    def by_name(self) -> bool:
        """Whether it asks for a destination by name where ``facts`` have one."""

    def open(self, facts: FlowFacts, requester: Requester) -> Attempt | None:
        """Begin to open a leg for a flow. None: it failed at once, ``failed`` was called."""

    @property
    def carries_udp(self) -> bool | None:
        """Whether datagrams can go this way; None where that is not known yet."""

    def carrier(self, client: Endpoint, tried: Collection[str] = ()) -> Outbound:
        """What carries the datagrams of ``client``: itself, unless it is a group.

        ``tried``: names of those that have failed to; one of them where there is no other.
        """

    def associate(self, family: int, client: Endpoint, owner: LegOwner, batch: Batch) -> Leg | None:
        """A leg for the datagrams of ``client``, to far ends of an address family.

        It may fail before this returns (``leg_failed``). None: it did. Raises ``OSError``
        where the machine has no room for one.
        """

    def ping(self, host: str) -> PingSocket | EchoRefusal:
        """A socket that asks ``host`` (an address) for its echo, or why there is none.

        Raises ``OSError`` where the machine has no way there, or no room for a socket.
        """

    def close(self) -> None:
        """Give up what no flow uses: none will be opened. Legs that are being opened go on."""


def target_of(facts: FlowFacts, *, by_name: bool) -> Endpoint:
    """What an outbound is to be asked for: the destination, or its name where it asks by name."""
    # The rest of the world knows nothing of a name that has but one label.
    if by_name and facts.name is not None and "." in facts.name:
        return Endpoint(facts.name, facts.destination.port)
    return facts.destination


def failure_of(error: OSError) -> UpstreamFailure:
    """What an error of connect(2), send(2) or recv(2) means to the client."""
    return _FAILURES.get(error.errno or 0, UpstreamFailure.UNREACHABLE)


class ConnectAttempt:
    """A TCP connect in progress; base of all that goes on talking once it is connected.

    A subclass that has a handshake overrides ``_on_connected`` and ``_on_readable``.
    """

    __slots__ = ("_connecting", "_edges", "_reactor", "_requester", "_sock")

    member: ClassVar = ""

    def __init__(self, reactor: Reactor, requester: Requester, sock: SocketType) -> None:
        self._reactor = reactor
        self._requester = requester
        self._sock = sock
        self._connecting = True
        self._edges = 0
        reactor.watch(sock.fileno(), self)

    def cancel(self) -> None:
        """Give up, close, call nobody."""
        self._reactor.close(self._sock)

    def abort(self) -> None:
        """End after a bug in the handshake."""
        self._fail(UpstreamFailure.PROTOCOL, "internal error")

    def on_ready(self, fd: int, events: int) -> None:
        """Finish the connect, then let the handshake go on."""
        del fd
        self._edges |= events
        try:
            if self._connecting:
                if not events & OUT:
                    return
                # Without these the connect went well: connect(2) would have one ask for the error.
                if events & _ENDS and (code := pending_error(self._sock)):
                    raise OSError(code, os.strerror(code))
                self._connecting = False
                self._on_connected()
                if not events & IN:
                    return
            self._on_readable()
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(failure_of(error), error.strerror or str(error))

    def _on_connected(self) -> None:
        self._succeed(b"", 0)

    def _on_readable(self) -> None:
        """Nothing is expected from the peer before it is connected."""

    @property
    def _drained(self) -> bool:
        """Whether a short read has left nothing behind it: what comes next has its own edge."""
        return not self._edges & _BEHIND

    def _succeed(self, surplus: bytes, sent: int) -> None:
        self._requester.connected(self._sock, surplus, sent, self._edges)

    def _fail(self, failure: UpstreamFailure, detail: str) -> None:
        self._reactor.close(self._sock)
        self._requester.failed(failure, detail, self._is_answer(failure))

    def _is_answer(self, failure: UpstreamFailure) -> bool:
        """Whether a failure is what the destination says."""
        return failure in _ANSWERS


def open_socket(
    factory: SocketFactory, remote: Endpoint, options: SocketOptions, requester: Requester
) -> SocketType | None:
    """A socket that has begun to connect; None where it failed at once (requester was told)."""
    try:
        return factory.connect_tcp(remote, options)
    except OSError as error:
        requester.failed(failure_of(error), error.strerror or str(error))
        return None
