"""Whether what looks like a loop is one: what goes round stands still while it is held back.

Honest clients open flow after flow without an answer, too: pools of connections, reports to whom
never answers, questions to who is gone. But they go on by themselves, so that others come while
some are held back, and none comes because these are let go. Of a loop each flow is the last one's
doing: none comes while its head is held back, and one comes back as soon as that is let go. Each
of several loops between the same ends has a head.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Final, Generic, NamedTuple, TypeVar

from gateway.breaker import PAIRS, SHARE, WITHIN_S, Accepted

#: Suspects are held back at least so long (seconds), and half as long as they took to come: a
#: client that goes on by itself shows again and again within that.
HELD_S: Final = 0.2
#: More of them are no loop: a client that asked again may have sent some of them round.
MOST_HELD: Final = 8
#: Who is no loop is not suspected again for so long (seconds).
CLEARED_S: Final = 60.0

_Flow = TypeVar("_Flow", bound=Accepted)
_Key = TypeVar("_Key", bound=Hashable)


class Verdict(NamedTuple, Generic[_Flow]):
    """What becomes of a new flow: it goes on, or it is held back, or these are to end."""

    held: bool = False
    loop: tuple[_Flow, ...] = ()


class _Trial(Generic[_Flow]):
    """``wait``: how long each half of it takes (seconds)."""

    def __init__(self, suspects: list[_Flow], wait: float) -> None:
        self.suspects = suspects
        self.wait = wait
        self.held: list[_Flow] = []
        self.let_go = False

    def unanswered(self) -> list[_Flow]:
        """The suspects that still are."""
        return [flow for flow in self.suspects if flow.reason is None and not flow.bytes_down]


class Trials(Generic[_Key, _Flow]):
    """Those of one data plane, each of flows that look alike.

    ``suspects`` are the flows that may make a loop with a new one, itself among them; mostly
    none. ``go_on`` is called with a flow that was held back, unless it has ended meanwhile.
    """

    def __init__(
        self,
        suspects: Callable[[_Key, _Flow], list[_Flow]],
        call_later: Callable[[float, Callable[[], None]], object],
        go_on: Callable[[_Flow], None],
    ) -> None:
        self._suspects = suspects
        self._call_later = call_later
        self._go_on = go_on
        self._trials: dict[_Key, _Trial[_Flow]] = {}
        self._cleared: dict[_Key, float] = {}  # and until when (time.monotonic)

    def judge(self, alike: _Key, flow: _Flow) -> Verdict[_Flow]:
        """What becomes of this flow, which is alike others of the same key."""
        trial = self._trials.get(alike)
        if trial is None:
            return self._suspect(alike, flow)
        if trial.let_go:
            del self._trials[alike]
            return Verdict(loop=(*trial.unanswered(), flow))
        if len(trial.held) == MOST_HELD:
            self._clear(alike, trial)
            return Verdict()
        trial.held.append(flow)
        return Verdict(held=True)

    def _suspect(self, alike: _Key, flow: _Flow) -> Verdict[_Flow]:
        if self._cleared.get(alike, 0.0) > flow.started:
            return Verdict()
        suspects = self._suspects(alike, flow)
        if not suspects:
            return Verdict()
        took = flow.started - suspects[0].started
        if took > WITHIN_S:
            # Nobody is to be held back for so long: of a client, one flow is lost.
            return Verdict(loop=(flow,))
        trial = self._trials[alike] = _Trial(suspects, max(HELD_S, took / 2))
        trial.held.append(flow)
        self._call_later(trial.wait, partial(self._let_go, alike, trial))
        return Verdict(held=True)

    def _let_go(self, alike: _Key, trial: _Trial[_Flow]) -> None:
        """While they were held, no more than these came: if one comes back now, it goes round."""
        if self._trials.get(alike) is not trial:
            return
        if len(trial.unanswered()) < SHARE:
            self._clear(alike, trial)
            return
        trial.let_go = True
        self._call_later(trial.wait, partial(self._clear, alike, trial))
        self._release(trial)

    def _clear(self, alike: _Key, trial: _Trial[_Flow]) -> None:
        """They are no loop."""
        if self._trials.get(alike) is not trial:
            return
        del self._trials[alike]
        if len(self._cleared) >= PAIRS:
            self._cleared.clear()
        self._cleared[alike] = trial.suspects[-1].started + CLEARED_S
        self._release(trial)

    def _release(self, trial: _Trial[_Flow]) -> None:
        held, trial.held = trial.held, []
        for flow in held:
            if flow.reason is None:
                if flow not in trial.suspects:
                    trial.suspects.append(flow)
                self._go_on(flow)
