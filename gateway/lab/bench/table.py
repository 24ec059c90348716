"""A summary for people."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gateway.lab.bench.runner import Report
from gateway.lab.bench.summary import Cell, range_of


def render(report: Report) -> RenderableType:
    """A row for each metric, a column for each candidate, and what the numbers mean below."""
    summary = report.summary
    table = Table(box=None, pad_edge=False, header_style="bold")
    # Where it is too wide, cells may break; what they are about may not.
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name in summary.candidates:
        table.add_column(name, justify="right", overflow="fold")
    for row in summary.rows:
        cells = [_cell(row.cells.get(name)) for name in summary.candidates]
        table.add_row(row.metric.title, Text(row.metric.unit, style="dim"), *cells)
    rounds = report.sizes.rounds
    legend = (
        f"Medians of {rounds} {'round' if rounds == 1 else 'interleaved rounds'}, ± half the "
        f"{range_of(rounds)}; x: ratio to {summary.baseline}, within each round. CPU is that of "
        "the proxy's processes."
    )
    failures = [Text(f"failed: {failure}", style="red") for failure in report.failures]
    notes = [legend]
    if report.missing:
        notes.append(f"Not installed: {', '.join(report.missing)}.")
    return Group(table, *(Text(note, style="dim") for note in notes), *failures)


def _cell(cell: Cell | None) -> Text:
    if cell is None:
        return Text("-", style="dim")
    text = Text(number(cell.median))
    if len(cell.samples) > 1:
        text.append(f" ±{cell.spread:.0%}", style="dim")
    text.append("      " if cell.ratio is None else f" {cell.ratio:.2f}x", style="cyan")
    return text


def number(value: float) -> str:
    """Three digits are all that a measurement deserves."""
    return f"{value:.{max(0, 3 - len(str(int(value))))}f}" if value else "0"
