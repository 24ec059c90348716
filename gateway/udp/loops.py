"""Datagrams that come back to us: our own, those of a proxy behind us, and questions about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from socket import SOCK_DGRAM, SocketType
from typing import Final, NamedTuple

from gateway.breaker import DatagramBreaker, Likeness, advice, likeness
from gateway.flow import Endpoint
from gateway.kernel.datagrams import Way
from gateway.kernel.own_sockets import OwnSockets
from gateway.routing import OwnTraffic
from gateway.trial import Trials
from gateway.udp.flow import UdpFlow

#: Datagrams that are kept of each flow that is held back.
KEPT: Final = 8


class Caught(NamedTuple):
    """Flows of a loop that are to end, and what is said of the newest."""

    flows: tuple[UdpFlow, ...]
    detail: str


class Held:
    """What a flow that is held back sends by: nothing goes."""

    def __init__(self) -> None:
        self.sock: SocketType | None = None
        self.kept: list[bytes] = []

    def keep_one(self, way: Way, datagram: bytes) -> int:
        """Keep it; it counts when it goes."""
        del way
        if len(self.kept) < KEPT:
            self.kept.append(datagram)
        return 0


class LoopWatch:
    """Looks at each new flow of one data plane, of which it knows the sockets.

    ``go_on`` is called with a flow that was held back, and the datagrams kept of it.
    """

    def __init__(
        self,
        own: OwnTraffic,
        opened: OwnSockets,
        call_later: Callable[[float, Callable[[], None]], object],
        go_on: Callable[[UdpFlow, Iterable[bytes]], None],
    ) -> None:
        self.own = own
        self._opened = opened
        self._go_on = go_on
        breaker: DatagramBreaker[UdpFlow] = DatagramBreaker()
        self._trials: Trials[Likeness, UdpFlow] = Trials(
            breaker.suspects, call_later, self._release
        )

    def is_own(self, source: Endpoint, destination: Endpoint) -> bool:
        """Whether a datagram is one that a leg sent."""
        if source.host not in self.own.addresses:
            return False
        return not self.own.diverted or self._opened.sent(SOCK_DGRAM, source, destination)

    def caught(self, flow: UdpFlow, first: bytes) -> Caught | None:
        """What to end now that this flow has begun, with this datagram; mostly nothing.

        A flow that must wait has a ``Held`` for its leg.
        """
        if self.own.may_ask(flow.facts):
            missing = self.own.missing_rule(flow.facts, flow.decision.outbound, first)
            if missing:
                return Caught((flow,), missing)
        verdict = self._trials.judge(likeness(flow.facts, first), flow)
        if verdict.loop:
            own = flow.facts.source.host in self.own.addresses
            return Caught(verdict.loop, advice(flow, own=own))
        if verdict.held:
            flow.leg = Held()
        return None

    def _release(self, flow: UdpFlow) -> None:
        held, flow.leg = flow.leg, None
        assert isinstance(held, Held), "nobody else opens a flow that is held back"
        self._go_on(flow, held.kept)
