"""Runs a suite: every candidate up at once, rounds interleaved, one measurement at a time."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from gateway.lab.bench.rig import Rig
from gateway.lab.bench.suite import Scenario, Sizes, Suite
from gateway.lab.bench.summary import Measured, Summary, summarise
from gateway.lab.lab import Lab
from gateway.lab.process import LabError
from gateway.version import VERSION

#: Told what comes next, and which part of all is done (0 to 1).
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found; ``failures`` says which cells are empty, and why.

    ``missing``: the peers that are not installed.
    """

    suite: str
    sizes: Sizes
    summary: Summary
    failures: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything, with what is needed to judge it."""
        return {
            "suite": self.suite,
            **circumstances(),
            "sizes": asdict(self.sizes),
            "baseline": self.summary.baseline,
            "rows": self.summary.to_json(),
            "failures": list(self.failures),
            "missing": list(self.missing),
        }


def circumstances() -> dict[str, Any]:
    """What and where was measured, for a JSON result."""
    return {
        "version": VERSION,
        "machine": {
            "kernel": platform.release(),
            "architecture": platform.machine(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
    }


def run(suite: Suite, sizes: Sizes, progress: Progress) -> Report:
    """Measure everything. Raises ``GatewayError`` where the lab or this gateway do not come up.

    A peer that fails is left out, and said to have failed: it must not take the rest along.
    """
    Lab.sweep()
    measured: list[Measured] = []
    failures: list[str] = []
    with ExitStack() as stack:
        rigs = []
        for candidate in suite.candidates:
            progress(f"starting {candidate.name}", 0)
            try:
                rigs.append(stack.enter_context(Rig(candidate, suite.wan_delay_ms, suite.servers)))
            except LabError as error:
                if not candidate.peer:
                    raise
                failures.append(f"{candidate.name}: {error}")
        plan = [(n, scenario, rig) for n, scenario in _schedule(suite, sizes) for rig in rigs]
        for step, (round_, scenario, rig) in enumerate(plan):
            name = rig.candidate.name
            progress(f"round {round_ + 1}: {name}: {scenario.title}", step / len(plan))
            try:
                measured.append(Measured(name, round_, scenario.measure(rig, sizes)))
            except LabError as error:
                failures.append(f"{name}: {scenario.title}: {error}")
        progress("removing the labs", 1)
    names = tuple(candidate.name for candidate in suite.candidates)
    summary = summarise(suite.metrics, names, suite.baseline, measured)
    return Report(suite.name, sizes, summary, tuple(failures), suite.missing)


def _schedule(suite: Suite, sizes: Sizes) -> Iterator[tuple[int, Scenario]]:
    """Rounds and scenarios, in order; a scenario's candidates are measured back to back."""
    for round_ in range(sizes.rounds):
        for scenario in suite.scenarios:
            if round_ == 0 or not scenario.once:
                yield round_, scenario
