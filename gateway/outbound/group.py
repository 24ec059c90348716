"""Groups: a flow goes by a member, and by the next one where that fails before it carried a byte.

Whose fault a failure is decides: what a destination answers is the flow's own end, and what a
member answers in its place may be otherwise by the next one. A member that does not answer at
all, or does not let us in, is suspected besides, and probed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from socket import SocketType
from typing import Final

from gateway.errors import UpstreamFailure
from gateway.flow import Endpoint, FlowFacts
from gateway.kernel.datagrams import Batch
from gateway.kernel.ping_sockets import PingSocket
from gateway.kernel.reactor import UNKNOWN
from gateway.kernel.udp_sockets import ErrorReport
from gateway.outbound.base import Attempt, EchoRefusal, Outbound, Requester, failure_of
from gateway.outbound.board import Board, Candidate
from gateway.outbound.datagrams import Kept, Leg, LegOwner, Route

#: No other member would fare better: the machine has no room, or refusing is what is asked for.
FINAL: Final = frozenset({UpstreamFailure.RESOURCES, UpstreamFailure.REJECTED})
#: An association that ends like this shows that the member cannot be reached.
_UNREACHED: Final = frozenset(
    {
        UpstreamFailure.REFUSED,
        UpstreamFailure.UNREACHABLE,
        UpstreamFailure.TIMEOUT,
        UpstreamFailure.RESET,
    }
)


class GroupOutbound:
    """One group, whatever its type: the board says who comes first."""

    def __init__(self, name: str, board: Board) -> None:
        self.name = name
        self._board = board
        self._carriers: dict[str, _Carrier] = {}

    @property
    def by_name(self) -> bool:
        """Whether some member asks for destinations by name."""
        return any(each.by_name for each in self._board.ends(self.name))

    def open(self, facts: FlowFacts, requester: Requester) -> Attempt | None:
        """Begin to open a leg by the first member."""
        self._board.used[self.name] += 1
        candidates = self._board.for_flow(self.name, facts)
        return GroupAttempt(self._board, candidates, facts, requester).begin()

    @property
    def carries_udp(self) -> bool | None:
        """Whether some member does; None where that is not known yet."""
        able = {each.carries_udp for each in self._board.ends(self.name)}
        if True in able:
            return True
        return None if None in able else False

    def carrier(self, client: Endpoint, tried: Collection[str] = ()) -> Outbound:
        """The member for a client's socket; the same object as long as it is the same member."""
        self._board.used[self.name] += not tried
        member, outbound = self._board.for_datagrams(self.name, client, tried)
        known = self._carriers.get(member)
        if known is None or known.outbound is not outbound:
            known = self._carriers[member] = _Carrier(member, outbound, self._board)
        return known

    def associate(self, family: int, client: Endpoint, owner: LegOwner, batch: Batch) -> Leg | None:
        """A leg by the member for that client."""
        return self.carrier(client).associate(family, client, owner, batch)

    def ping(self, host: str) -> PingSocket | EchoRefusal:
        """By the member that flows to ``host`` take; no other one stands in for it."""
        return self._board.for_echo(self.name, host).outbound.ping(host)

    def close(self) -> None:
        """There is nothing that no flow uses: members are closed by themselves."""


class GroupAttempt:
    """One flow's leg, by the first of several members that connects it."""

    __slots__ = (
        "_ahead", "_board", "_facts", "_first", "_over", "_requester", "_said", "_timer", "_tries",
        "member",
    )  # fmt: skip

    def __init__(
        self,
        board: Board,
        candidates: tuple[Candidate, ...],
        facts: FlowFacts,
        requester: Requester,
    ) -> None:
        self._board = board
        self._ahead = list(reversed(candidates))
        self._facts = facts
        self._requester = requester
        self._tries: list[_Try] = []
        self._said: list[str] = []
        self._first: tuple[UpstreamFailure, bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._over = False
        self.member = candidates[0].member

    def begin(self) -> GroupAttempt | None:
        """Try the first. None: all have failed at once, and the requester was told."""
        self._next()
        return None if self._over else self

    def cancel(self) -> None:
        """Give all up."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        for each in self._tries:
            if each.attempt is not None:
                each.attempt.cancel()
        self._tries.clear()

    def first_bytes(self) -> bytes:
        """The client's, where no other member is tried any more: they must not go out twice."""
        alone = not self._ahead and len(self._tries) == 1
        return self._requester.first_bytes() if alone else b""

    def won(
        self, winner: _Try, upstream: SocketType, surplus: bytes, sent: int, edges: int
    ) -> None:
        """A member has connected the flow; those that were asked before and have not are slow."""
        for each in self._tries[: self._tries.index(winner)]:
            self._board.suspect(each.candidate.outbound)
        self._tries.remove(winner)
        self.member = winner.candidate.member
        self.cancel()
        self._requester.connected(upstream, surplus, sent, edges)

    def lost(self, loser: _Try, failure: UpstreamFailure, detail: str, replied: bool) -> None:
        """A member has failed: the next one, or the end."""
        self._tries.remove(loser)
        self._said.append(f"{loser.candidate.member}: {detail or failure}")
        self._first = self._first or (failure, replied)
        if not replied and failure not in FINAL:
            self._board.suspect(loser.candidate.outbound)
        refused = replied and failure is UpstreamFailure.REFUSED
        if failure in FINAL or refused:
            self._end(failure, replied)
        elif self._ahead:
            self._board.counters["group_failovers"] += 1
            self._next()
        elif not self._tries:
            self._board.counters["group_exhausted"] += 1
            self._end(*self._first)

    def _end(self, failure: UpstreamFailure, replied: bool) -> None:
        self.cancel()
        self._requester.failed(failure, "; ".join(self._said), replied)

    def _next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        candidate = self._ahead.pop()
        self.member = candidate.member
        one = _Try(self, candidate)
        self._tries.append(one)
        attempt = candidate.outbound.open(self._facts, one)
        if attempt is None or self._over:
            return
        one.attempt = attempt
        if self._ahead:
            self._timer = self._board.reactor.call_later(
                self._board.patience_s, self._lose_patience
            )

    def _lose_patience(self) -> None:
        self._timer = None
        self._board.counters["group_failovers"] += 1
        self._next()


class _Try:
    """One member that is asked to connect the flow."""

    __slots__ = ("_group", "attempt", "candidate")

    def __init__(self, group: GroupAttempt, candidate: Candidate) -> None:
        self._group = group
        self.candidate = candidate
        self.attempt: Attempt | None = None

    def first_bytes(self) -> bytes:
        """The flow's, if they cannot go out twice."""
        return self._group.first_bytes()

    def connected(
        self, upstream: SocketType, surplus: bytes, sent: int = 0, edges: int = UNKNOWN
    ) -> None:
        """It has."""
        self._group.won(self, upstream, surplus, sent, edges)

    def failed(self, failure: UpstreamFailure, detail: str, replied: bool = False) -> None:
        """It has not."""
        self._group.lost(self, failure, detail, replied)


class _Carrier:
    """A member for the datagrams of those clients whose turn it is."""

    def __init__(self, member: str, outbound: Outbound, board: Board) -> None:
        self.name = member
        self.outbound = outbound
        self._board = board

    @property
    def by_name(self) -> bool:
        """As the member."""
        return self.outbound.by_name

    def open(self, facts: FlowFacts, requester: Requester) -> Attempt | None:
        """By the member."""
        return self.outbound.open(facts, requester)

    @property
    def carries_udp(self) -> bool | None:
        """As the member."""
        return self.outbound.carries_udp

    def carrier(self, client: Endpoint, tried: Collection[str] = ()) -> Outbound:
        """Itself."""
        del client, tried
        return self

    def associate(self, family: int, client: Endpoint, owner: LegOwner, batch: Batch) -> Leg | None:
        """By the member, which is suspected where it cannot be reached."""
        watched = _Watched(owner, self.outbound, self._board)
        try:
            return self.outbound.associate(family, client, watched, batch)
        except OSError as error:
            if failure_of(error) in _UNREACHED:
                self._board.suspect(self.outbound)
            raise

    def ping(self, host: str) -> PingSocket | EchoRefusal:
        """By the member."""
        return self.outbound.ping(host)

    def close(self) -> None:
        """The member is closed by itself."""


class _Watched:
    """The owner of a leg by a member, who hears what the board hears too."""

    __slots__ = ("_board", "_outbound", "_owner")

    def __init__(self, owner: LegOwner, outbound: Outbound, board: Board) -> None:
        self._owner = owner
        self._outbound = outbound
        self._board = board

    def stranger(self, remote: Endpoint) -> Route | None:
        """See ``LegOwner``."""
        return self._owner.stranger(remote)

    def leg_failed(self, failure: UpstreamFailure, detail: str, kept: Sequence[Kept] = ()) -> None:
        """Conversations go on by another member."""
        if failure in _UNREACHED:
            self._board.suspect(self._outbound)
        self._owner.leg_failed(failure, detail, kept)

    def leg_error(self, report: ErrorReport) -> None:
        """See ``LegOwner``."""
        self._owner.leg_error(report)

    def leg_dropped(self, why: str) -> None:
        """See ``LegOwner``."""
        self._owner.leg_dropped(why)
