"""What a benchmark is made of: candidates, scenarios, and the metrics that those yield."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.lab.bench.metric import Metric
from gateway.lab.bench.rig import Candidate, Rig


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured: ``seconds`` in each window, ``idle_flows`` where flows are counted."""

    rounds: int = 3
    seconds: float = 1.0
    idle_flows: int = 2000


QUICK = Sizes(rounds=1, seconds=0.4, idle_flows=500)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing to do with a candidate.

    ``measure`` returns a value for each of ``metrics``, by key; those that a candidate cannot
    have (plain forwarding has no process) are left out. ``once``: later rounds would not be
    independent of the first, as the candidate keeps what it has learnt.
    """

    title: str
    metrics: tuple[Metric, ...]
    measure: Callable[[Rig, Sizes], Mapping[str, float]]
    once: bool = False


@dataclass(frozen=True, slots=True)
class Suite:
    """``gateway bench NAME``; ``wan_delay_ms`` as of ``Lab``."""

    name: str
    candidates: tuple[Candidate, ...]
    scenarios: tuple[Scenario, ...]
    wan_delay_ms: float = 0

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Of all scenarios, in order."""
        return tuple(metric for scenario in self.scenarios for metric in scenario.metrics)
