"""Results as Markdown, from the JSON that a run wrote: the README's tables are made with this."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.lab.bench.summary import range_of
from gateway.lab.bench.table import number

Json = Mapping[str, Any]


def table(report: Json) -> str:
    """A report's table, ratios to its baseline in brackets, and what it was measured on.

    Metrics that are 0 for all, and those that nobody has, are left out.
    """
    rows = [
        row for row in report["rows"] if any(cell["median"] for cell in row["candidates"].values())
    ]
    names = list(dict.fromkeys(name for row in rows for name in row["candidates"]))
    lines = [_line("", *names), _line(*["---"] * (len(names) + 1))]
    for row in rows:
        title = ", ".join(filter(None, (row["title"], row["unit"])))
        lines.append(_line(title, *(_cell(row["candidates"].get(name)) for name in names)))
    return "\n".join([*lines, "", *_circumstances(report)])


def soak(record: Json) -> str:
    """What a soak came to, in a sentence or two."""
    minutes = round(record["steady_s"] / 60, 1)
    outcome = "; ".join(record["problems"]) or "no flow failed, and nothing was left behind"
    before, after, again = (
        f"{record[name]['anonymous_bytes'] / (1 << 20):.1f} MiB"
        for name in ("start", "end", "again")
    )
    return (
        f"{record['idle_flows']} idle and {record['active_flows']} active flows for "
        f"{minutes:g} minutes, {record['blocks']} blocks of 128 KiB there and back: {outcome}. "
        "In the second half, by the line that fits best, memory grew by "
        f"{record['anonymous_growth_bytes'] / 1024:.0f} KiB and descriptors by "
        f"{record['descriptors_growth']:.0f}. Anonymous memory was {before} before the flows, "
        f"{after} after, and {again} with as many flows once more."
    )


def policy(record: Json) -> str:
    """What decisions and rule sets take."""
    amounts = ", ".join(f"{amount:,} {what}" for what, amount in record["amounts"].items())
    figures = (
        _line(f"{figure['title']}, {figure['unit']}", number(figure["value"]))
        for figure in record["figures"]
    )
    lines = [_line(amounts, ""), _line("---", "---"), *figures]
    return "\n".join([*lines, "", f"{_machine(record)}."])


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Json | None) -> str:
    if cell is None:
        return ""
    spread = f" ±{cell['spread'] * 100:.0f} %" if len(cell["samples"]) > 1 else ""
    ratio = "" if cell["ratio"] is None else f" ({cell['ratio']:.2f})"
    return f"{number(cell['median'])}{spread}{ratio}"


def _circumstances(report: Json) -> Iterator[str]:
    sizes = report["sizes"]
    rounds = sizes["rounds"]
    measured = f"{rounds} rounds of {sizes['seconds']:g} s" if rounds > 1 else "one round"
    yield (
        f"{_machine(report)}; {measured}; medians ± half the "
        f"{range_of(rounds)}, in brackets the ratio to {report['baseline']}."
    )
    for failure in report["failures"]:
        yield f"Failed: {failure}."


def _machine(record: Json) -> str:
    machine = record["machine"]
    return (
        f"Linux {machine['kernel'].partition('-')[0]}, {machine['architecture']}, "
        f"{machine['cpus']} CPUs, Python {machine['python']}"
    )
