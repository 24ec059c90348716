"""The minute of the week, in any zone, over changes of the clock."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.clock import WeekClock, minute_of_week

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("utc", "zone", "expected"),
    [
        ("2026-11-16T00:00", "UTC", 0),
        ("2026-11-15T23:59", "UTC", 10079),
        ("2026-11-15T23:00", "Europe/Berlin", 0),
        # Daylight saving time begins on the last Sunday in March: 01:59 is followed by 03:00.
        ("2026-03-29T00:59", "Europe/Berlin", 6 * 1440 + 119),
        ("2026-03-29T01:00", "Europe/Berlin", 6 * 1440 + 180),
    ],
)
def test_the_minute_in_a_zone(utc: str, zone: str, expected: int) -> None:
    at = datetime.fromisoformat(f"{utc}+00:00").timestamp()
    assert minute_of_week(at, ZoneInfo(zone)) == expected
    assert WeekClock(zone, lambda: at + 59.9).minute() == expected


@given(st.lists(st.floats(0, 4e9), min_size=1, max_size=20))
def test_a_clock_may_jump(times: list[float]) -> None:
    ahead = iter(times)
    clock = WeekClock("Europe/Berlin", lambda: next(ahead))
    assert [clock.minute() for _ in times] == [minute_of_week(at, BERLIN) for at in times]


@given(st.floats(0, 4e9))
def test_a_minute_later_it_is_a_minute_later(at: float) -> None:
    utc = ZoneInfo("UTC")
    assert minute_of_week(at + 60, utc) == (minute_of_week(at, utc) + 1) % 10080


def test_this_machines_own_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    assert WeekClock(clock=lambda: 0.0).minute() in range(10080)
