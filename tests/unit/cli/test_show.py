"""Numbers and tables as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.show import amount, columns, span


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1500, "1.5 kB"),
        (2_500_000, "2.5 MB"),
        (10**9, "1.0 GB"),
        (12 * 10**15, "12000.0 TB"),
    ],
)
def test_amount(count: int, text: str) -> None:
    assert amount(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (60.0, "1 min 0 s"),
        (3723.0, "1 h 2 min"),
        (90_000.0, "1 d 1 h"),
    ],
)
def test_span(seconds: float, text: str) -> None:
    assert span(seconds) == text


@given(
    st.integers(1, 5).flatmap(
        lambda width: st.lists(
            st.lists(st.from_regex(r"[!-~]{1,9}", fullmatch=True), min_size=width, max_size=width),
            min_size=1,
            max_size=5,
        )
    )
)
def test_columns_lose_nothing(rows: list[list[str]]) -> None:
    text = columns(rows)
    assert [line.split() for line in text.splitlines()] == rows
