"""What a benchmark is made of: candidates, scenarios, and the metrics that those yield."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from gateway.lab.bench.candidates import Candidate
from gateway.lab.bench.metric import Metric
from gateway.lab.bench.rig import Rig
from gateway.lab.process import LabError


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured: ``seconds`` in each window, ``idle_flows`` where flows are counted."""

    rounds: int = 3
    seconds: float = 1.0
    idle_flows: int = 20_000


QUICK: Final = Sizes(rounds=1, seconds=0.4, idle_flows=500)


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
    """``gateway bench NAME``. Ratios are to the candidate ``baseline``.

    ``wan_delay_ms`` and ``servers`` as of ``Rig``; ``sizes`` unless others are chosen;
    ``missing``: who would be compared, too, were they installed.
    """

    name: str
    candidates: tuple[Candidate, ...]
    scenarios: tuple[Scenario, ...]
    baseline: str = "gateway"
    wan_delay_ms: float = 0
    servers: int = 1
    sizes: Sizes = Sizes()
    missing: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Of all scenarios, in order."""
        return tuple(metric for scenario in self.scenarios for metric in scenario.metrics)

    def only(self, candidates: Sequence[str], scenarios: Sequence[str]) -> Suite:
        """What has one of these texts in its name or title; the baseline stays. None: all.

        Raises ``LabError`` where nothing has.
        """
        chosen = replace(
            self,
            missing=tuple(name for name in self.missing if _named(name, candidates)),
            candidates=tuple(
                one
                for one in self.candidates
                if one.name == self.baseline or _named(one.name, candidates)
            ),
            scenarios=tuple(one for one in self.scenarios if _named(one.title, scenarios)),
        )
        if not chosen.scenarios:
            known = ", ".join(one.title for one in self.scenarios)
            raise LabError(f"no such scenario: {', '.join(scenarios)}", f"there is: {known}")
        for text in candidates:
            if not any(_named(one.name, [text]) for one in self.candidates):
                known = ", ".join(one.name for one in self.candidates)
                raise LabError(f"no such candidate: {text}", f"there is: {known}")
        return chosen


def _named(name: str, texts: Sequence[str]) -> bool:
    return not texts or any(text in name for text in texts)
