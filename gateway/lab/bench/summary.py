"""From measured values to medians, spreads and ratios. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.lab.bench.metric import Metric

#: So many samples have a middle half that says more than their extremes.
MANY: Final = 20


@dataclass(frozen=True, slots=True)
class Measured:
    """What one candidate did in one scenario of one round, by metric key."""

    candidate: str
    round: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Cell:
    """One metric of one candidate over all rounds.

    ``ratios`` to the baseline are those within each round, in which both met the same
    conditions; a round in which the baseline has no value, or 0, has none.
    """

    samples: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of all rounds."""
        return statistics.median(self.samples)

    @property
    def ratio(self) -> float | None:
        """The median of the ratios, if there are any."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def spread(self) -> float:
        """Half the way from the lowest to the highest sample, as a part of the median.

        Of many samples, the lowest and the highest quarter are left out.
        """
        ordered = sorted(self.samples)
        left_out = len(ordered) // 4 if len(ordered) >= MANY else 0
        half = (ordered[-1 - left_out] - ordered[left_out]) / 2
        return half / self.median if self.median else 0.0


def range_of(rounds: int) -> str:
    """What ``Cell.spread`` is half of, in words."""
    return "range of the middle half" if rounds >= MANY else "range"


@dataclass(frozen=True, slots=True)
class Row:
    """One metric; a candidate that cannot have it, or failed, has no cell."""

    metric: Metric
    cells: Mapping[str, Cell]


@dataclass(frozen=True, slots=True)
class Summary:
    """All rows. ``baseline`` is the candidate that ratios are to."""

    candidates: tuple[str, ...]
    baseline: str
    rows: tuple[Row, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """A JSON object for each row, with every sample."""
        return [
            {
                "metric": row.metric.key,
                "title": row.metric.title,
                "unit": row.metric.unit,
                "better": row.metric.better,
                "candidates": {
                    name: {
                        "median": cell.median,
                        "spread": cell.spread,
                        "ratio": cell.ratio,
                        "ratios": list(cell.ratios),
                        "samples": list(cell.samples),
                    }
                    for name, cell in row.cells.items()
                },
            }
            for row in self.rows
        ]


def summarise(
    metrics: Iterable[Metric],
    candidates: tuple[str, ...],
    baseline: str,
    measured: Iterable[Measured],
) -> Summary:
    """One row for each metric, in that order."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for entry in measured:
        for key, value in entry.values.items():
            found.setdefault((key, entry.candidate), {})[entry.round] = value
    return Summary(
        candidates,
        baseline,
        tuple(
            Row(
                metric,
                {
                    name: _cell(found[metric.key, name], found.get((metric.key, baseline), {}))
                    for name in candidates
                    if (metric.key, name) in found
                },
            )
            for metric in metrics
        ),
    )


def _cell(by_round: Mapping[int, float], baseline: Mapping[int, float]) -> Cell:
    ratios = (value / baseline[n] for n, value in by_round.items() if baseline.get(n))
    return Cell(tuple(by_round.values()), tuple(ratios))
