"""``gateway bench soak``: many flows for a long time, and whether anything grows."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from gateway.lab.bench.candidates import Candidate, gateway_config
from gateway.lab.bench.idle import idle_clients, processes_for, workers_for
from gateway.lab.bench.record import Moment, Record
from gateway.lab.bench.rig import Clients, Rig
from gateway.lab.bench.runner import Progress
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.process import LabError, Process

SAMPLE_S: Final = 2.0
#: So many moments a steady part has, and no fewer than half of them where each look takes long.
_LEAST_MOMENTS: Final = 10
#: With flows, until whatever any of them needs is there; and without, until it is put away.
_SETTLE_S: Final = 5.0
_TIMEOUT_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How many flows, and how long all of them are there."""

    seconds: float
    idle_flows: int
    active_flows: int

    @property
    def settle_s(self) -> float:
        """Before each part."""
        return min(_SETTLE_S, self.seconds / 2)


class Recorder:
    """Looks at the gateway at regular times, whatever is waited for."""

    def __init__(self, rig: Rig, gateway: GatewayProcess, interval_s: float) -> None:
        self._rig, self._gateway = rig, gateway
        self._interval_s = interval_s
        self._start_s = time.monotonic()
        self.moments: list[Moment] = []

    def look(self) -> Moment:
        """Now."""
        rig = self._rig
        self.moments.append(
            Moment(
                time.monotonic() - self._start_s,
                self._gateway.control.get("/health")["flows"],
                rig.descriptors(),
                rig.resident_bytes(),
                rig.anonymous_bytes(),
            )
        )
        return self.moments[-1]

    def until(
        self, condition: Callable[[], bool], what: str, timeout_s: float = _TIMEOUT_S
    ) -> None:
        """Look on until ``condition`` holds. Raises ``LabError`` after ``timeout_s``."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline_s:
                raise LabError(f"waited {timeout_s:g} s in vain: {what}")
            time.sleep(self._interval_s)
            self.look()

    def during(self, seconds: float) -> None:
        """Look on for so long."""
        end_s = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end_s, "time to pass", seconds + _TIMEOUT_S)


def run(plan: Plan, progress: Progress) -> Record:
    """The whole soak. Raises ``GatewayError`` where lab, gateway or flows do not come up."""
    Lab.sweep()
    flows = plan.idle_flows + plan.active_flows
    gateways: list[GatewayProcess] = []

    def start(lab: Lab) -> Process:
        gateways.append(lab.start_gateway(gateway_config(lab, workers=workers_for(flows))))
        return gateways[0].process

    progress("starting", 0)
    candidate = Candidate("gateway", start)
    with Rig(candidate, servers=processes_for(flows, 1)) as rig:
        interval_s = min(SAMPLE_S, plan.seconds / _LEAST_MOMENTS)
        return _Soak(plan, rig, Recorder(rig, gateways[0], interval_s), progress).run()


class _Soak:
    def __init__(self, plan: Plan, rig: Rig, recorder: Recorder, progress: Progress) -> None:
        self._plan, self._rig, self._recorder = plan, rig, recorder
        self._progress = progress

    def run(self) -> Record:
        plan, rig, recorder = self._plan, self._rig, self._recorder
        self._progress("the first flows come and go", 0)
        with rig.clients("active", plan.active_flows) as active:
            self._established([active], plan.active_flows)
            recorder.during(plan.settle_s)
        start = self._rest()
        with self._all_flows() as (idle, active):
            steady = self._steady()
            if not active.process.alive:
                raise LabError("the active clients ended", f"see {active.process.log[-1:]}")
            blocks, failed = active.read("exchanges"), active.read("failed")
            silent = self._silent(idle)
        end = self._rest()
        with self._all_flows():
            self._progress("the same flows again", 0.95)
            again = recorder.look()
        return Record(
            plan.idle_flows,
            plan.active_flows,
            tuple(recorder.moments),
            start,
            steady,
            end,
            again,
            blocks,
            failed,
            silent,
        )

    @contextmanager
    def _all_flows(self) -> Iterator[tuple[Sequence[Clients], Clients]]:
        plan, rig = self._plan, self._rig
        with idle_clients(rig, plan.idle_flows, second_family=6) as idle:
            self._progress("idle flows", 0.02)
            self._established(idle, plan.idle_flows)
            with rig.clients("active", plan.active_flows) as active:
                self._progress("active flows", 0.04)
                self._established([active], plan.active_flows)
                self._recorder.during(plan.settle_s)
                yield idle, active

    def _established(self, clients: Sequence[Clients], flows: int) -> None:
        self._recorder.until(
            lambda: _sum(clients, "established") >= flows, f"{flows} flows to be open"
        )

    def _steady(self) -> tuple[int, int]:
        """Indices of the first and the last moment."""
        seconds, recorder = self._plan.seconds, self._recorder
        first = len(recorder.moments)
        began_s = recorder.look().time_s

        def over() -> bool:
            past_s = recorder.moments[-1].time_s - began_s
            self._progress("all flows are there", 0.05 + 0.9 * min(1.0, past_s / seconds))
            looks = len(recorder.moments) - first
            return past_s >= seconds and looks >= _LEAST_MOMENTS // 2

        recorder.until(over, "the steady part to end", seconds + _TIMEOUT_S)
        return first, len(recorder.moments) - 1

    def _silent(self, idle: Sequence[Clients]) -> int:
        """How many idle flows do not answer any more."""
        for clients in idle:
            clients.process.signal(signal.SIGUSR1)
        flows = self._plan.idle_flows
        # Each was proved at its start, too.
        self._recorder.until(
            lambda: _sum(idle, "proved") + _sum(idle, "failed") >= 2 * flows,
            "idle flows to answer",
        )
        return _sum(idle, "failed")

    def _rest(self) -> Moment:
        """Without flows."""
        recorder = self._recorder
        recorder.look()
        recorder.until(lambda: not recorder.moments[-1].flows, "the last flow to end")
        recorder.during(self._plan.settle_s)
        return recorder.look()


def _sum(clients: Sequence[Clients], name: str) -> int:
    return sum(each.read(name) for each in clients)
