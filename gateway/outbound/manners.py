"""Whether a SOCKS server bears a pipelined handshake: tried once, with a flow that cannot be lost.

The flow that tries sends everything at once. If the server ends the connection, breaks
the protocol, or stays silent for a while, the flow goes on by a second, strict
connection; whichever is established first carries it, and tells what the server is like.
Other flows are strict meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from socket import SocketType
from typing import ClassVar, Final, Literal

from gateway.errors import UpstreamFailure
from gateway.kernel.reactor import UNKNOWN, Reactor
from gateway.outbound.base import Attempt, Requester

Handshake = Literal["auto", "pipelined", "strict"]

#: How long a pipelined request may go unanswered before a strict one is sent beside it
#: (seconds). A server that swallowed it would be waited for in vain; one that is only slow
#: mostly still answers first.
PATIENCE_S: Final = 1.0

#: What a server that does not bear it does; any other answer is one to the request.
_INDECENT: Final = frozenset({UpstreamFailure.RESET, UpstreamFailure.PROTOCOL})


class Manners:
    """What has been learnt of one server, by all flows that use it."""

    __slots__ = ("pipelining", "trying")

    def __init__(self) -> None:
        #: None: not known yet.
        self.pipelining: bool | None = None
        self.trying = False

    @property
    def unknown(self) -> bool:
        """Whether the next flow should try."""
        return self.pipelining is None and not self.trying


@dataclass(frozen=True, slots=True)
class _Runner:
    """Asks for one of the two connections of a trial."""

    trial: Trial
    pipelined: bool

    def first_bytes(self) -> bytes:
        """A trial sends nothing of the client's before the server has shown what it is like."""
        return b""

    def connected(
        self, upstream: SocketType, surplus: bytes, sent: int = 0, edges: int = UNKNOWN
    ) -> None:
        """It is established."""
        del sent
        self.trial.won(self.pipelined, upstream, surplus, edges)

    def failed(self, failure: UpstreamFailure, detail: str, replied: bool = False) -> None:
        """It is not."""
        self.trial.lost(self.pipelined, failure, detail, replied)


Opener = Callable[[Requester, bool], Attempt | None]


class Trial:
    """One flow's leg, by one of two connections."""

    __slots__ = ("_attempts", "_manners", "_open", "_requester", "_timer")

    member: ClassVar = ""

    def __init__(self, manners: Manners, requester: Requester, opener: Opener) -> None:
        self._manners = manners
        self._requester = requester
        self._open = opener
        self._attempts: dict[bool, Attempt] = {}
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def begin(
        cls, manners: Manners, reactor: Reactor, requester: Requester, opener: Opener
    ) -> Trial | None:
        """Begin the pipelined connection. None: it failed at once, the requester was told."""
        trial = cls(manners, requester, opener)
        manners.trying = True
        trial._start(pipelined=True)
        if not trial._attempts:
            return None
        trial._timer = reactor.call_later(PATIENCE_S, trial._lose_patience)
        return trial

    def cancel(self) -> None:
        """Give both up; nothing was learnt."""
        for attempt in self._attempts.values():
            attempt.cancel()
        self._finish()

    def won(self, pipelined: bool, upstream: SocketType, surplus: bytes, edges: int) -> None:
        """One is established: it carries the flow, and shows what the server is like."""
        self._manners.pipelining = pipelined
        self._drop(pipelined)
        self.cancel()
        self._requester.connected(upstream, surplus, edges=edges)

    def lost(self, pipelined: bool, failure: UpstreamFailure, detail: str, replied: bool) -> None:
        """One has failed: by the server's manners, or by its answer, which is the flow's."""
        self._drop(pipelined)
        if pipelined and failure in _INDECENT:
            if self._attempts or self._start(pipelined=False):
                return  # the strict one decides
            return
        self.cancel()
        self._requester.failed(failure, detail, replied)

    def _start(self, *, pipelined: bool) -> bool:
        attempt = self._open(_Runner(self, pipelined), pipelined)
        if attempt is not None:
            self._attempts[pipelined] = attempt
        return attempt is not None

    def _drop(self, pipelined: bool) -> None:
        self._attempts.pop(pipelined, None)

    def _lose_patience(self) -> None:
        if False not in self._attempts:
            self._start(pipelined=False)

    def _finish(self) -> None:
        self._attempts.clear()
        self._manners.trying = False
        if self._timer is not None:
            self._timer.cancel()
