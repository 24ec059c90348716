"""What carries a client's datagrams onward: a leg, with one socket for all who are talked to.

One leg for each client socket and outbound, whatever it talks to, is endpoint-independent
mapping (RFC 4787 section 4.1): whoever learns the leg's address may answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from socket import SocketType
from typing import Final, Protocol

from gateway.errors import UpstreamFailure
from gateway.flow import Endpoint
from gateway.kernel.datagrams import SLOTS, Batch, Way
from gateway.kernel.reactor import ERROR, Reactor
from gateway.kernel.udp_sockets import ErrorReport, read_errors

#: Batches taken per wake-up, so that one flow cannot starve the others.
ROUNDS: Final = 4
#: Datagrams, and their bytes, that wait for a leg to be there.
WAITING: Final = 32
WAITING_BYTES: Final = 64 << 10
#: Errors of a socket that one wake-up bears.
_ERRORS: Final = 8


#: A datagram that waits, and how it is to be addressed.
Kept = tuple[Way, bytes]


class Route(Protocol):
    """The way back from one far end to the client."""

    def down(self, batch: Batch, first: int, last: int, skip: int) -> None:
        """Give the client slots ``first`` up to ``last``, without their first ``skip`` bytes."""

    def down_one(self, batch: Batch, data: memoryview) -> None:
        """Give the client one datagram."""


class LegOwner(Protocol):
    """Whose leg it is."""

    def stranger(self, remote: Endpoint) -> Route | None:
        """Somebody answers who has not been talked to; None: the client shall not hear it."""

    def leg_failed(self, failure: UpstreamFailure, detail: str, kept: Sequence[Kept] = ()) -> None:
        """The leg is gone; it has closed what it had. ``kept`` was not sent."""

    def leg_error(self, report: ErrorReport) -> None:
        """The network has said something of what was sent."""

    def leg_dropped(self, why: str) -> None:
        """A datagram was left out. ``why`` is a counter's name."""


class Leg(ABC):
    """Base of all legs. ``sock`` is None until datagrams can be sent.

    A subclass sets ``sock`` by ``_open_for_use`` and says in ``_deliver`` whose a datagram is.
    """

    __slots__ = ("_batch", "_owner", "_reactor", "_waiting", "_waiting_bytes", "routes", "sock")

    def __init__(self, reactor: Reactor, batch: Batch, owner: LegOwner) -> None:
        """``batch`` is shared by all legs: it holds nothing between two calls."""
        self._reactor = reactor
        self._batch = batch
        self._owner = owner
        self._waiting: list[Kept] = []
        self._waiting_bytes = 0
        #: By what the datagrams of a far end begin with, or its socket address.
        self.routes: dict[bytes, Route] = {}
        self.sock: SocketType | None = None

    @abstractmethod
    def way(self, target: Endpoint, route: Route) -> Way:
        """How to address ``target``, whose answers take ``route``."""

    def forget(self, route: Route) -> None:
        """Let nothing take that route any more."""
        for key in [key for key, known in self.routes.items() if known is route]:
            del self.routes[key]

    def keep_one(self, way: Way, datagram: bytes) -> int:
        """Hold a datagram back until the leg is there; its size, 0 where it is one too many."""
        size = self._waiting_bytes + len(datagram)
        if len(self._waiting) >= WAITING or size > WAITING_BYTES:
            self._owner.leg_dropped("not-ready")
            return 0
        self._waiting.append((way, datagram))
        self._waiting_bytes = size
        return len(datagram)

    def close(self) -> None:
        """Give up everything; nobody is told."""
        self._waiting.clear()
        self.routes.clear()
        self._close_socket()

    def give_up(self, detail: str) -> None:
        """End, because it took too long."""
        self._fail(UpstreamFailure.TIMEOUT, detail)

    def abort(self) -> None:
        """End after a bug."""
        self._fail(UpstreamFailure.PROTOCOL, "internal error")

    def on_ready(self, fd: int, events: int) -> None:
        """Take what has come, a batch at a time."""
        batch = self._batch
        errors = 0
        if events & ERROR and self.sock is not None:
            self._read_errors(self.sock)
        for _ in range(ROUNDS):
            try:
                count = batch.receive(fd)
            except OSError:
                # An ICMP error, told once by every way there is.
                errors += 1
                if errors > _ERRORS:
                    return
                continue
            if count:
                self._deliver(count)
            if count < SLOTS or self.sock is None:
                return
        self._reactor.again(fd)

    def _open_for_use(self, sock: SocketType) -> None:
        self.sock = sock
        self._reactor.watch(sock.fileno(), self)
        waiting, self._waiting = self._waiting, []
        self._waiting_bytes = 0
        for way, datagram in waiting:
            self._batch.send(sock, way.prefix + datagram, way.to)

    def _close_socket(self) -> None:
        if self.sock is not None:
            self._reactor.close(self.sock)
            self.sock = None

    def _fail(self, failure: UpstreamFailure, detail: str) -> None:
        kept, self._waiting = self._waiting, []
        self.close()
        self._owner.leg_failed(failure, detail, kept)

    @abstractmethod
    def _deliver(self, count: int) -> None:
        """Hand the ``count`` slots of the batch to their routes."""

    def _read_errors(self, sock: SocketType) -> None:
        for report in read_errors(sock):
            self._owner.leg_error(report)
