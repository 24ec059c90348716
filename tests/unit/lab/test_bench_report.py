from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gateway.lab.bench import runner, table, usage
from gateway.lab.bench.candidates import Candidate
from gateway.lab.bench.metric import Metric
from gateway.lab.bench.rig import Rig
from gateway.lab.bench.suite import Scenario, Sizes, Suite
from gateway.lab.bench.summary import Cell, Measured, summarise
from gateway.lab.lab import Lab
from gateway.lab.load.counters import Counters
from gateway.lab.process import LabError

RATE = Metric("rate", "bulk", "Gbit/s", "more")
CPU = Metric("cpu", "bulk: CPU", "s/GB", "less")
NAMES = ("forwarding", "gateway", "other")

# --- summary -----------------------------------------------------------------------------


def cells(*measured: Measured) -> Mapping[str, Cell]:
    (row,) = summarise([RATE], NAMES, "gateway", measured).rows
    return row.cells


def test_a_cell_is_the_median_and_the_ratio_within_each_round() -> None:
    found = cells(
        *(Measured("gateway", n, {"rate": value}) for n, value in enumerate([10, 20, 40])),
        *(Measured("other", n, {"rate": value}) for n, value in enumerate([5, 40, 40])),
    )
    assert (found["gateway"].median, found["gateway"].ratio) == (20, 1)
    # Of medians the ratio would be 2; the rounds say 0.5, 2 and 1.
    assert (found["other"].median, found["other"].ratio) == (40, 1)
    assert found["other"].spread == pytest.approx(35 / 2 / 40)


def test_a_candidate_without_a_value_has_no_cell() -> None:
    found = cells(Measured("gateway", 0, {"rate": 1}), Measured("forwarding", 0, {}))
    assert set(found) == {"gateway"}


@pytest.mark.parametrize(
    "baseline",
    [(), (Measured("gateway", 0, {"rate": 0}),), (Measured("gateway", 1, {"rate": 5}),)],
    ids=["missing", "zero", "other round"],
)
def test_without_a_baseline_there_is_no_ratio(baseline: tuple[Measured, ...]) -> None:
    assert cells(Measured("other", 0, {"rate": 3}), *baseline)["other"].ratio is None


def test_spread_of_nothing_is_nothing() -> None:
    assert Cell((0.0, 0.0), ()).spread == 0


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=9), st.floats(0.01, 100))
def test_a_candidate_that_is_always_n_times_as_fast_has_that_ratio(
    values: list[float], factor: float
) -> None:
    found = cells(
        *(Measured("gateway", n, {"rate": value}) for n, value in enumerate(values)),
        *(Measured("other", n, {"rate": value * factor}) for n, value in enumerate(values)),
    )
    assert found["other"].ratio == pytest.approx(factor)
    assert found["gateway"].median == statistics.median(values)


# --- a run -------------------------------------------------------------------------------


class FakeRig:
    def __init__(self, candidate: Candidate, _wan_delay_ms: float, _servers: int) -> None:
        self.candidate = candidate

    def __enter__(self) -> FakeRig:
        if self.candidate.name == "absent":
            raise LabError("did not come up")
        return self

    def __exit__(self, *_: object) -> None:
        pass


def suite(*names: str, log: list[str]) -> Suite:
    def bulk(rig: Rig, _: Sizes) -> Mapping[str, float]:
        log.append(f"bulk {rig.candidate.name}")
        if rig.candidate.name == "stuck":
            raise LabError("nothing moves")
        return {"rate": 2.0}

    def idle(rig: Rig, _: Sizes) -> Mapping[str, float]:
        log.append(f"idle {rig.candidate.name}")
        return {"cpu": 1.0}

    candidates = tuple(
        Candidate(name, lambda _: None, peer=name in ("absent", "stuck")) for name in names
    )
    scenarios = (Scenario("idle", (CPU,), idle, once=True), Scenario("bulk", (RATE,), bulk))
    return Suite("tcp", candidates, scenarios)


@pytest.fixture(autouse=True)
def _no_labs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "Rig", FakeRig)
    monkeypatch.setattr(Lab, "sweep", list)


def run(*names: str, log: list[str] | None = None, rounds: int = 2) -> runner.Report:
    chosen = suite(*names, log=[] if log is None else log)
    return runner.run(chosen, Sizes(rounds=rounds), lambda _what, _part: None)


def test_rounds_are_interleaved_and_what_is_measured_once_comes_once() -> None:
    log: list[str] = []
    run("gateway", "other", log=log)
    assert log == [
        *("idle gateway", "idle other"),
        *("bulk gateway", "bulk other"),
        *("bulk gateway", "bulk other"),
    ]


def test_a_peer_that_fails_is_reported_and_the_rest_is_measured() -> None:
    report = run("gateway", "absent", "stuck", rounds=1)
    assert report.failures == ("absent: did not come up", "stuck: bulk: nothing moves")
    assert {row.metric.key: set(row.cells) for row in report.summary.rows} == {
        "cpu": {"gateway", "stuck"},
        "rate": {"gateway"},
    }


def test_a_gateway_that_does_not_come_up_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def broken(_: Candidate, _wan_delay_ms: float, _servers: int) -> Iterator[None]:
        raise LabError("no")
        yield

    monkeypatch.setattr(runner, "Rig", broken)
    with pytest.raises(LabError):
        run("gateway")


def test_json_has_every_sample_and_what_is_needed_to_judge_it() -> None:
    document = run("forwarding", "gateway").to_json()
    assert document["baseline"] == "gateway"
    assert document["sizes"] == {"rounds": 2, "seconds": 1.0, "idle_flows": 20_000}
    assert document["machine"]["kernel"]
    (row,) = [row for row in document["rows"] if row["metric"] == "rate"]
    assert row["better"] == "more"
    assert row["candidates"]["forwarding"] == {
        "median": 2.0,
        "spread": 0.0,
        "ratio": 1.0,
        "ratios": [1.0, 1.0],
        "samples": [2.0, 2.0],
    }


def test_the_table_shows_medians_ratios_and_failures() -> None:
    out = StringIO()
    Console(file=out, width=120).print(table.render(run("forwarding", "gateway", "stuck")))
    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["forwarding", "gateway", "stuck"]
    assert [line.split() for line in lines if line.startswith("bulk ")] == [
        ["bulk", "Gbit/s", "2.00", "±0%", "1.00x", "2.00", "±0%", "1.00x", "-"]
    ]
    assert lines[-1] == "failed: stuck: bulk: nothing moves"


def test_the_table_names_the_peers_that_are_not_there() -> None:
    out = StringIO()
    report = replace(run("gateway"), missing=("redsocks", "v2ray"))
    Console(file=out, width=120).print(table.render(report))
    assert out.getvalue().splitlines()[-1] == "Not installed: redsocks, v2ray."


def test_a_table_without_room_breaks_cells_and_loses_nothing() -> None:
    names = ("gateway", *(f"candidate {number}" for number in range(5)))
    out = StringIO()
    Console(file=out, width=70).print(table.render(run(*names)))
    text = out.getvalue()
    assert "…" not in text
    for metric in (RATE, CPU):
        assert f"\n{metric.title} " in text
        assert f" {metric.unit} " in text
    assert text.count("1.00x") == 2 * len(names)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.4251, "0.43"), (7.215, "7.21"), (58.04, "58.0"), (6604.3, "6604")],
)
def test_numbers_have_the_digits_that_they_deserve(value: float, shown: str) -> None:
    assert table.number(value) == shown


def test_a_suite_can_be_cut_down_to_what_is_named() -> None:
    whole = suite("gateway", "other", "another", "third", log=[])
    cut = whole.only(["other"], ["bul"])
    assert [one.name for one in cut.candidates] == ["gateway", "other", "another"]
    assert [one.title for one in cut.scenarios] == ["bulk"]
    assert whole.only((), ()) == whole
    with pytest.raises(LabError, match="no such scenario: bulky"):
        whole.only((), ["bulky"])
    with pytest.raises(LabError, match="no such candidate: fourth"):
        whole.only(["other", "fourth"], ())


# --- what a process uses -----------------------------------------------------------------

WORKER = """
import os, pathlib, sys, time
pathlib.Path("/proc/self/comm").write_text("a) b (c")
while time.process_time() < 0.05: pass
print("done", flush=True)
sys.stdin.read()
"""


def test_cpu_and_memory_are_those_of_the_whole_tree() -> None:
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WORKER!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stdout.readline() == "done\n"
        _, child = usage.processes(parent.pid)
        assert usage.cpu_s(child) >= 0.04
        assert usage.cpu_s(parent.pid) >= usage.cpu_s(child)
        assert usage.memory_bytes(parent.pid) > usage.memory_bytes(child) > 1 << 20
        assert usage.resident_bytes(parent.pid) > usage.memory_bytes(parent.pid)
        assert usage.descriptors(parent.pid) > usage.descriptors(child) >= 3
        parent.stdin.close()
    with pytest.raises(OSError, match=str(parent.pid)):
        usage.cpu_s(parent.pid)


def test_a_child_that_has_just_ended_uses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(pid: int) -> int:
        if pid == 2:
            raise ProcessLookupError
        return 10 * pid

    monkeypatch.setattr(usage, "processes", lambda pid: iter([pid, 2, 3]))
    assert usage._sum(1, measured) == 10 + 30
    with pytest.raises(ProcessLookupError):
        usage._sum(2, measured)


def test_counters_are_read_while_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "counters"
    reader = Counters(path, ("in", "out"), create=True)
    writer = Counters(path, ("in", "out"))
    writer.values[1] += 1 << 40
    assert reader.read() == {"in": 0, "out": 1 << 40}
