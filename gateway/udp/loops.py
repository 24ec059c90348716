"""Datagrams that come back to us: our own, those of a proxy behind us, and questions about it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from socket import SOCK_DGRAM, SocketType
from typing import Final, NamedTuple

from gateway.breaker import PAIRS, SHARE, DatagramBreaker, Likeness, advice, likeness
from gateway.flow import Endpoint
from gateway.kernel.datagrams import Way
from gateway.kernel.own_sockets import OwnSockets
from gateway.routing import OwnTraffic
from gateway.udp.flow import UdpFlow

#: Suspects are held back at least so long (seconds), and half as long as they took to come: a
#: client that goes on by itself shows again and again within that.
HELD_S: Final = 0.2
#: More of them are no loop: a client that asked again may have sent some of them round.
MOST_HELD: Final = 8
#: Datagrams that are kept of each.
KEPT: Final = 8
#: Who is no loop is not suspected again for so long (seconds).
CLEARED_S: Final = 60.0


class Caught(NamedTuple):
    """Flows of a loop that are to end, and what is said of the newest."""

    flows: list[UdpFlow]
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


class _Trial:
    """Whether suspects are a loop. ``wait``: how long each half of it takes (seconds)."""

    def __init__(self, suspects: list[UdpFlow], wait: float) -> None:
        self.suspects = suspects
        self.wait = wait
        self.held: list[tuple[UdpFlow, Held]] = []
        self.let_go = False

    def unanswered(self) -> list[UdpFlow]:
        """The suspects that still are."""
        return [flow for flow in self.suspects if flow.reason is None and not flow.bytes_down]


class LoopWatch:
    """Looks at each new flow of one data plane, of which it knows the sockets.

    ``go_on`` is called with a flow that was held back, and the datagrams kept of it.
    """

    def __init__(
        self,
        own: OwnTraffic,
        opened: OwnSockets,
        call_later: Callable[[float, Callable[[], None]], object],
        go_on: Callable[[UdpFlow, list[bytes]], None],
    ) -> None:
        self.own = own
        self._opened = opened
        self._call_later = call_later
        self._go_on = go_on
        self._breaker: DatagramBreaker[UdpFlow] = DatagramBreaker()
        self._trials: dict[Likeness, _Trial] = {}
        self._cleared: dict[Likeness, float] = {}  # and until when (time.monotonic)

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
                return Caught([flow], missing)
        alike = likeness(flow.facts, first)
        trial = self._trials.get(alike) or self._suspected(alike, flow)
        if trial is None:
            return None
        if trial.let_go:
            del self._trials[alike]
            own = flow.facts.source.host in self.own.addresses
            return Caught([*trial.unanswered(), flow], advice(flow, own=own))
        if len(trial.held) == MOST_HELD:
            self._clear(alike, trial)
            return None
        flow.leg = held = Held()
        trial.held.append((flow, held))
        return None

    def _suspected(self, alike: Likeness, flow: UdpFlow) -> _Trial | None:
        """The trial that begins with this flow, if one does."""
        if self._cleared.get(alike, 0.0) > flow.started:
            return None
        suspects = self._breaker.suspects(alike, flow)
        if not suspects:
            return None
        wait = max(HELD_S, (flow.started - suspects[0].started) / 2)
        trial = self._trials[alike] = _Trial(suspects, wait)
        self._call_later(wait, partial(self._let_go, alike, trial))
        return trial

    def _let_go(self, alike: Likeness, trial: _Trial) -> None:
        """While they were held, no more than these came: if one comes back now, it goes round."""
        if self._trials.get(alike) is not trial:
            return
        if len(trial.unanswered()) < SHARE:
            self._clear(alike, trial)
            return
        trial.let_go = True
        self._call_later(trial.wait, partial(self._clear, alike, trial))
        self._release(trial)

    def _clear(self, alike: Likeness, trial: _Trial) -> None:
        """They are no loop."""
        if self._trials.get(alike) is not trial:
            return
        del self._trials[alike]
        if len(self._cleared) >= PAIRS:
            self._cleared.clear()
        self._cleared[alike] = trial.suspects[-1].started + CLEARED_S
        self._release(trial)

    def _release(self, trial: _Trial) -> None:
        held, trial.held = trial.held, []
        for flow, leg in held:
            if flow.leg is leg:
                if flow not in trial.suspects:
                    trial.suspects.append(flow)
                self._go_on(flow, leg.kept)
