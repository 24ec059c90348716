"""A soak as a picture: flows, descriptors and memory over time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from gateway.lab.bench import svg
from gateway.lab.bench.record import Record

WIDTH: Final = 820
_LEFT, _RIGHT, _TOP = 70, 24, 66
_PANEL, _SPACE = 120, 46


def draw(record: Record) -> str:
    """An SVG file; each panel begins at 0, so that what looks flat is."""
    moments = record.moments
    minutes = [moment.time_s / 60 for moment in moments]
    panels = {
        "flows": [float(moment.flows) for moment in moments],
        "descriptors": [float(moment.descriptors) for moment in moments],
        "resident memory, MiB": [moment.resident_bytes / (1 << 20) for moment in moments],
        "anonymous memory, MiB": [moment.anonymous_bytes / (1 << 20) for moment in moments],
    }
    title = "gateway bench soak"
    said = (
        f"{record.idle_flows} idle and {record.active_flows} active flows; all processes of the "
        "gateway, from before the first flow to after the last"
    )
    elements = [svg.text(16, 24, title, "title"), svg.text(16, 44, said, "faint")]
    for number, (name, values) in enumerate(panels.items()):
        elements += _panel(_TOP + 20 + number * (_PANEL + _SPACE), name, minutes, values)
    bottom = _TOP + 20 + len(panels) * (_PANEL + _SPACE)
    elements.append(svg.text(WIDTH / 2, bottom - 8, "minutes", "faint", "middle"))
    return svg.document(WIDTH, bottom + 8, title, elements)


def _panel(top: int, name: str, minutes: Sequence[float], values: Sequence[float]) -> Iterator[str]:
    across, up = svg.ticks(minutes[-1], 10), svg.ticks(max(*values, 1), 4)
    bottom, right = top + _PANEL, WIDTH - _RIGHT
    x_unit, y_unit = (right - _LEFT) / across[-1], _PANEL / up[-1]
    yield svg.text(_LEFT, top - 8, name, "strong")
    for value in up:
        y = bottom - value * y_unit
        yield svg.line(_LEFT, y, right, y, "grid" if value else "axis")
        yield svg.text(_LEFT - 8, y + 4, f"{value:g}", "faint", "end")
    for value in across:
        yield svg.text(_LEFT + value * x_unit, bottom + 16, f"{value:g}", "faint", "middle")
    points = [
        (_LEFT + x * x_unit, bottom - y * y_unit) for x, y in zip(minutes, values, strict=True)
    ]
    yield svg.curve(points, "curve")
