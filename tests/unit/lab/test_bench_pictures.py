"""Pictures are well-formed whatever they show, and show what the report says."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.lab.bench import bars, svg
from gateway.lab.bench.metric import Metric
from gateway.lab.bench.runner import Report
from gateway.lab.bench.suite import Sizes
from gateway.lab.bench.summary import Measured, summarise

NAMESPACE = "{http://www.w3.org/2000/svg}"


def picture(
    samples: dict[str, list[float]], title: str = "bulk", unit: str = "Gbit/s"
) -> ElementTree.Element:
    metric = Metric("rate", title, unit, "more")
    measured = [
        Measured(name, n, {"rate": value})
        for name, values in samples.items()
        for n, value in enumerate(values)
    ]
    summary = summarise([metric], tuple(samples), "gateway", measured)
    return ElementTree.fromstring(bars.draw(Report("tcp", Sizes(), summary, ())))


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{NAMESPACE}text")]


def widths(root: ElementTree.Element) -> list[float]:
    return [float(element.get("width", "0")) for element in root.iter(f"{NAMESPACE}rect")]


def test_bars_are_as_long_as_ratios_and_lines_as_wide_as_their_range() -> None:
    root = picture({"gateway": [2, 2, 2], "other": [1, 4, 2], "half": [1, 1, 1]})
    ours, other, half = widths(root)
    assert (other, half) == (pytest.approx(ours), pytest.approx(ours / 2, abs=0.1))
    ranges = [e for e in root.iter(f"{NAMESPACE}line") if e.get("class") == "range"]
    lengths = [float(e.get("x2", "0")) - float(e.get("x1", "0")) for e in ranges]
    assert lengths == [0, pytest.approx(1.5 * ours, abs=0.2), 0]
    assert {"bulk", "more is better", "0.50 · 1.00 Gbit/s", "ratio to gateway"} <= set(texts(root))


def test_a_bar_that_is_too_long_is_cut_and_its_number_stands() -> None:
    root = picture({"gateway": [1], "other": [100]})
    assert max(widths(root)) == pytest.approx(4 * widths(root)[0], abs=0.1)
    assert "100.00 · 100 Gbit/s" in texts(root)


def test_what_has_no_ratio_is_left_out() -> None:
    root = picture({"gateway": [0], "other": [3]})
    assert not widths(root)
    assert "bulk" not in texts(root)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=9),
        st.lists(st.floats(0, 1e9), min_size=1, max_size=3),
        max_size=4,
    ),
    st.text(st.characters(exclude_categories=["C"]), max_size=9),
)
def test_any_report_makes_a_picture(samples: dict[str, list[float]], title: str) -> None:
    root = picture({"gateway": [1.0], **samples}, title)
    assert all(width >= 0 for width in widths(root))
    if title.strip():
        assert title in texts(root)


@given(st.floats(1e-6, 1e12))
def test_ticks_reach_the_top_in_few_round_steps(top: float) -> None:
    found = svg.ticks(top)
    assert found[0] == 0
    assert found[-1] >= top > found[-2]
    assert 2 <= len(found) <= 7
    step = found[1]
    assert found == pytest.approx([n * step for n in range(len(found))])
    assert f"{step:e}"[0] in "125"
