"""A report as a picture: for each metric the ratios of all candidates, each with its range."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.lab.bench import svg
from gateway.lab.bench.runner import Report
from gateway.lab.bench.summary import Cell, Row
from gateway.lab.bench.table import number

#: Of a column: names, bars, numbers; and what is between two columns.
_NAMES, _BARS, _NUMBERS, _BETWEEN = 162, 190, 142, 20
_COLUMN: Final = _NAMES + _BARS + _NUMBERS
_MARGIN, _TOP, _BOTTOM = 16, 66, 48
_BAR, _STEP, _HEADING, _SPACE = 11, 15, 22, 10
#: A longer bar is cut; its number stands beside it.
_LONGEST: Final = 4.0


def draw(report: Report) -> str:
    """An SVG file. Metrics without any ratio (0, or missing in the baseline) are left out."""
    baseline, rounds = report.summary.baseline, report.sizes.rounds
    rows = [row for row in report.summary.rows if any(c.ratios for c in row.cells.values())]
    reached = [ratio for row in rows for cell in row.cells.values() for ratio in cell.ratios]
    scale = svg.ticks(min(max(reached, default=1), _LONGEST), 5)
    columns = _columns(rows)
    height = _TOP + max(sum(map(_height, column)) for column in columns) + _BOTTOM
    title = f"gateway bench {report.suite}"
    said = (
        f"ratio to {baseline} within each of {rounds} rounds: median (bar), "
        "lowest to highest (line), and the median of what was measured"
        if rounds > 1
        else f"ratio to {baseline} in one round, and what was measured"
    )
    elements = [svg.text(_MARGIN, 24, title, "title"), svg.text(_MARGIN, 44, said, "faint")]
    for at, column in enumerate(columns):
        left = _MARGIN + at * (_COLUMN + _BETWEEN)
        elements += _Column(left, height - _BOTTOM, scale, baseline).draw(column)
    width = 2 * _MARGIN + len(columns) * (_COLUMN + _BETWEEN) - _BETWEEN
    return svg.document(width, height, title, elements)


def _columns(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """In two of about the same height; few rows in one."""
    total, above = sum(map(_height, rows)), 0
    for at, row in enumerate(rows):
        if at >= 2 and above >= total / 2:
            return [rows[:at], rows[at:]]
        above += _height(row)
    return [rows]


def _height(row: Row) -> int:
    return _HEADING + len(row.cells) * _STEP + _SPACE


@dataclass(frozen=True, slots=True)
class _Column:
    left: int
    bottom: int
    scale: list[float]
    baseline: str

    def draw(self, rows: Sequence[Row]) -> Iterator[str]:
        for value in self.scale:
            x = self._x(value)
            yield svg.line(x, _TOP, x, self.bottom, "grid" if value else "axis")
            yield svg.text(x, self.bottom + 16, f"{value:g}", "faint", "middle")
        yield svg.line(self._x(1), _TOP, self._x(1), self.bottom, "axis")
        middle = self._x(self.scale[-1] / 2)
        yield svg.text(middle, self.bottom + 34, f"ratio to {self.baseline}", "faint", "middle")
        y = _TOP
        for row in rows:
            yield svg.text(self.left, y + 14, row.metric.title, "strong")
            way = f"{row.metric.better} is better"
            yield svg.text(self.left + _COLUMN, y + 14, way, "faint", "end")
            for at, (name, cell) in enumerate(row.cells.items()):
                yield from self._bar(y + _HEADING + at * _STEP, name, cell, row.metric.unit)
            y += _height(row)

    def _bar(self, y: int, name: str, cell: Cell, unit: str) -> Iterator[str]:
        yield svg.text(self.left + _NAMES - 8, y + 10, name, "", "end")
        label = f"{number(cell.median)} {unit}".strip()
        if cell.ratio is not None:
            kind = "ours" if name.startswith("gateway") else "other"
            width = self._x(cell.ratio) - self._x(0)
            yield svg.rectangle(self._x(0), y, width, _BAR, f"bar {kind}")
            low, high = self._x(min(cell.ratios)), self._x(max(cell.ratios))
            yield svg.line(low, y + _BAR / 2, high, y + _BAR / 2, "range")
            label = f"{cell.ratio:.2f} · {label}"
        yield svg.text(self.left + _NAMES + _BARS + 10, y + 10, label, "faint")

    def _x(self, ratio: float) -> float:
        top = self.scale[-1]
        return self.left + _NAMES + min(ratio, top) / top * _BARS
