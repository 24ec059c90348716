"""A soak is judged by what it recorded: each thing that must not be is found."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.lab.bench import curves
from gateway.lab.bench.record import Moment, Record, growth

MIB = 1 << 20
START = Moment(0.0, 0, 40, 90 * MIB, 60 * MIB)
FULL = Moment(0.0, 1100, 2240, 120 * MIB, 80 * MIB)


def record(*steady: Moment) -> Record:
    """Flat, unless other moments are given."""
    full = steady or tuple(replace(FULL, time_s=float(n)) for n in range(10, 71, 2))
    last_s = full[-1].time_s
    end = replace(START, time_s=last_s + 10, anonymous_bytes=79 * MIB)
    again = replace(full[-1], time_s=last_s + 20)
    moments = (START, *full, end, again)
    return Record(1000, 100, moments, START, (1, len(full)), end, again, 5000, 0, 0)


FLAT = record()


def test_what_is_flat_has_no_problem() -> None:
    assert list(FLAT.problems()) == []
    assert FLAT.to_json()["problems"] == []
    assert FLAT.to_json()["descriptors_growth"] == 0
    assert FLAT.to_json()["moments"]["flows"][:2] == [0, 1100]


@pytest.mark.parametrize(
    ("soak", "said"),
    [
        (replace(FLAT, failed=2), "2 active flows failed"),
        (replace(FLAT, silent=3), "3 of 1000 idle flows did not answer at the end"),
        (replace(FLAT, end=replace(FLAT.end, flows=1)), "1 flows stayed behind"),
        (
            replace(FLAT, end=replace(FLAT.end, descriptors=441)),
            "441 descriptors are open, 40 before the flows came",
        ),
        (
            replace(FLAT, again=replace(FULL, anonymous_bytes=83 * MIB)),
            "the same flows once more take 3072 KiB more memory",
        ),
    ],
)
def test_each_problem_is_said(soak: Record, said: str) -> None:
    assert list(soak.problems()) == [said]


def test_a_leak_while_all_flows_are_there_is_found() -> None:
    """Little by little, in the half that counts."""
    steady = [
        replace(
            FULL,
            time_s=2.0 * n,
            descriptors=FULL.descriptors + 20 * n,
            anonymous_bytes=FULL.anonymous_bytes + 200 * 1024 * n,
        )
        for n in range(60)
    ]
    memory, descriptors = record(*steady).problems()
    assert memory == "memory grew by 5800 KiB, more than 2048 KiB"
    assert descriptors == "descriptors grew by 580, more than all pipes, 400"


def test_what_fills_up_in_the_first_half_is_no_leak() -> None:
    steady = [
        replace(FULL, time_s=2.0 * n, anonymous_bytes=FULL.anonymous_bytes + min(n, 30) * MIB)
        for n in range(60)
    ]
    assert list(record(*steady).problems()) == []


def test_a_moment_that_stands_out_is_no_growth() -> None:
    steady = [replace(FULL, time_s=2.0 * n) for n in range(60)]
    steady[30] = replace(steady[30], descriptors=FULL.descriptors + 300)
    assert list(record(*steady).problems()) == []


@given(
    st.floats(-1000, 1000),
    st.lists(st.floats(0, 1e5).map(lambda t: round(t, 3)), min_size=2, max_size=30, unique=True),
)
def test_growth_of_a_line_is_its_rise(slope: float, times: list[float]) -> None:
    moments = [replace(START, time_s=time_s) for time_s in sorted(times)]
    rise = slope * (moments[-1].time_s - moments[0].time_s)
    found = growth(moments, lambda moment: slope * moment.time_s)
    assert found == pytest.approx(rise, rel=1e-3, abs=1e-3)


def test_lines_tell_all_states() -> None:
    lines = list(FLAT.lines())
    assert lines[0] == "1000 idle and 100 active flows for 1.0 min,"
    assert [line.split("  ")[0] for line in lines[-4:]] == [
        "before",
        "with all",
        "after",
        "all once more",
    ]


def test_curves_are_drawn_within_their_panels() -> None:
    root = ElementTree.fromstring(curves.draw(FLAT))
    polylines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(polylines) == 4
    width, height = float(root.get("width", "0")), float(root.get("height", "0"))
    for polyline in polylines:
        points = [tuple(map(float, p.split(","))) for p in polyline.get("points", "").split()]
        assert len(points) == len(FLAT.moments)
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
        # More flows, descriptors or bytes are higher up.
        assert points[1][1] < points[0][1]
