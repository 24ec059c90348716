"""A report as a picture: for each metric the ratios of all candidates, each with its range."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gateway.lab.bench import svg
from gateway.lab.bench.runner import Report
from gateway.lab.bench.summary import Cell, Row
from gateway.lab.bench.table import number

WIDTH: Final = 820
_LEFT, _RIGHT, _TOP = 240, 150, 66
_BAR, _GAP, _HEADING = 12, 4, 24
#: A longer bar is cut; its number stands beside it.
_LONGEST: Final = 4.0


def draw(report: Report) -> str:
    """An SVG file. Metrics without any ratio (0, or missing in the baseline) are left out."""
    rows = [row for row in report.summary.rows if any(c.ratios for c in row.cells.values())]
    reached = max(
        (max(c.ratios) for row in rows for c in row.cells.values() if c.ratios), default=1
    )
    scale = svg.ticks(min(reached, _LONGEST))
    chart = _Chart(report.summary.baseline, (WIDTH - _LEFT - _RIGHT) / scale[-1], scale[-1])
    bottom = _TOP + sum(map(chart.height, rows))
    rounds = report.sizes.rounds
    title = f"gateway bench {report.suite}"
    elements = [
        svg.text(16, 24, title, "title"),
        svg.text(
            16,
            44,
            f"Ratio to {report.summary.baseline}, within each of {rounds} rounds: median (bar), "
            "lowest to highest (line); beside it the median itself",
            "faint",
        ),
        *chart.axis(scale, bottom),
        *chart.groups(rows),
    ]
    return svg.document(WIDTH, bottom + 44, title, elements)


class _Chart:
    def __init__(self, baseline: str, unit: float, top: float) -> None:
        self._baseline, self._unit, self._top = baseline, unit, top

    def height(self, row: Row) -> int:
        return _HEADING + len(row.cells) * (_BAR + _GAP) + 8

    def axis(self, scale: list[float], bottom: int) -> Iterator[str]:
        for value in scale:
            x = self._x(value)
            yield svg.line(x, _TOP, x, bottom, "axis" if value == 0 else "grid")
            yield svg.text(x, bottom + 16, f"{value:g}", "faint", "middle")
        yield svg.line(self._x(1), _TOP, self._x(1), bottom, "axis")
        middle = self._x(self._top / 2)
        yield svg.text(middle, bottom + 34, f"ratio to {self._baseline}", "faint", "middle")

    def groups(self, rows: list[Row]) -> Iterator[str]:
        y = _TOP
        for row in rows:
            way = f"{row.metric.better} is better"
            yield svg.text(16, y + 15, row.metric.title, "strong")
            yield svg.text(WIDTH - 16, y + 15, way, "faint", "end")
            at = y + _HEADING
            for name, cell in row.cells.items():
                yield from self._bar(at, name, cell, row.metric.unit)
                at += _BAR + _GAP
            y += self.height(row)

    def _bar(self, y: int, name: str, cell: Cell, unit: str) -> Iterator[str]:
        yield svg.text(_LEFT - 8, y + 10, name, "", "end")
        label = f"{number(cell.median)} {unit}".strip()
        if cell.ratio is not None:
            kind = "ours" if name.startswith("gateway") else "other"
            yield svg.rectangle(_LEFT, y, self._x(cell.ratio) - _LEFT, _BAR, f"bar {kind}")
            low, high = self._x(min(cell.ratios)), self._x(max(cell.ratios))
            yield svg.line(low, y + _BAR / 2, high, y + _BAR / 2, "range")
            label = f"{cell.ratio:.2f}x  {label}"
        yield svg.text(WIDTH - _RIGHT + 10, y + 10, label, "faint")

    def _x(self, ratio: float) -> float:
        return _LEFT + min(ratio, self._top) * self._unit
