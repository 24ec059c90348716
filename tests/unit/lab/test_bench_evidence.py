"""The README's tables are those of the results in tests/evidence.

Measure anew with ``gateway bench NAME --output tests/evidence/NAME.json --svg
tests/evidence/NAME.svg``, then take the tables over with ``pytest --update-golden`` of this.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from gateway.lab.bench import markdown

ROOT = Path(__file__).parents[3]
README = ROOT / "README.md"
EVIDENCE = ROOT / "tests" / "evidence"

SUITES = ("tcp", "latency", "direct", "udp", "tun", "icmp", "idle", "queue")


def compare(name: str, made: str, request: pytest.FixtureRequest) -> None:
    """``made`` is what stands between the README's marks for this result."""
    begin, end = f"<!-- bench {name}: made from its result -->\n", "<!-- end -->"
    text = README.read_text()
    before, mark, rest = text.partition(begin)
    stands, mark_of_end, after = rest.partition(end)
    assert mark
    assert mark_of_end
    if request.config.getoption("--update-golden"):
        README.write_text(f"{before}{begin}{made}\n{end}{after}")
    else:
        assert stands == f"{made}\n"


@pytest.mark.parametrize("name", SUITES)
def test_the_table_is_that_of_the_result(name: str, request: pytest.FixtureRequest) -> None:
    report = json.loads((EVIDENCE / f"{name}.json").read_text())
    assert report["suite"] == name
    compare(name, markdown.table(report), request)


def test_the_soak_is_that_of_the_result(request: pytest.FixtureRequest) -> None:
    record = json.loads((EVIDENCE / "soak.json").read_text())
    compare("soak", markdown.soak(record), request)


def test_what_rules_cost_is_that_of_the_result(request: pytest.FixtureRequest) -> None:
    record = json.loads((EVIDENCE / "policy.json").read_text())
    compare("policy", markdown.policy(record), request)


def test_every_picture_is_there() -> None:
    """Those that the README shows."""
    text = README.read_text()
    shown = [name for name in (*SUITES, "soak") if f"(tests/evidence/{name}.svg)" in text]
    assert {"tcp", "udp", "soak"} <= set(shown)
    for name in shown:
        ElementTree.parse(EVIDENCE / f"{name}.svg")


def report(**cells: dict[str, Any]) -> dict[str, Any]:
    """One row."""
    return {
        "baseline": "gateway",
        "machine": {"kernel": "6.1-x", "architecture": "arm64", "cpus": 4, "python": "3.11.2"},
        "sizes": {"rounds": 5, "seconds": 1.0},
        "rows": [{"title": "bulk", "unit": "Gbit/s", "candidates": cells}],
        "failures": ["other: no"],
    }


def test_a_table_says_what_was_measured() -> None:
    gateway = {"median": 2.0, "spread": 0.05, "samples": [2.0, 2.0], "ratio": 1.0}
    kernel = {"median": 9.04, "spread": 0, "samples": [9.04], "ratio": None}
    assert markdown.table(report(gateway=gateway, kernel=kernel)).splitlines() == [
        "|  | gateway | kernel |",
        "| --- | --- | --- |",
        "| bulk, Gbit/s | 2.00 ±5 % (1.00) | 9.04 |",
        "",
        (
            "Linux 6.1, arm64, 4 CPUs, Python 3.11.2; 5 rounds of 1 s; medians ± half the range, "
            "in brackets the ratio to gateway."
        ),
        "Failed: other: no.",
    ]


def test_a_row_of_zeros_is_left_out() -> None:
    nothing = {"median": 0, "spread": 0, "samples": [0], "ratio": None}
    assert "bulk" not in markdown.table(report(gateway=nothing))
