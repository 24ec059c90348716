"""The minute of the week, which is what rules know of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from zoneinfo import ZoneInfo

_DAY = 24 * 60


class WeekClock:
    """Minutes since Monday 00:00 in a time zone; this machine's own where none is named.

    It looks at the calendar once a minute, so that it may be asked for every flow.
    """

    def __init__(self, zone: str | None = None, clock: Callable[[], float] = time.time) -> None:
        self._zone = None if zone is None else ZoneInfo(zone)
        self._clock = clock
        self._from = self._until = 0.0
        self._minute = 0

    def minute(self) -> int:
        """The minute of the week that it is now, 0 to 10079."""
        now = self._clock()
        if not self._from <= now < self._until:
            self._from = now // 60 * 60
            self._until = self._from + 60
            self._minute = minute_of_week(now, self._zone)
        return self._minute


def minute_of_week(at: float, zone: ZoneInfo | None) -> int:
    """The minute of the week at a time (seconds since 1970 UTC)."""
    there = datetime.fromtimestamp(at, zone) if zone else datetime.fromtimestamp(at).astimezone()
    return there.weekday() * _DAY + there.hour * 60 + there.minute
