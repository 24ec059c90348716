"""Flows that wait for their client's first bytes, because their way hangs on what is in them.

A flow costs one look for each piece that its client sends, and a place in a queue; there is
one timer for all.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from gateway.sniff.sighting import Sighting

#: Ports whose servers speak first: FTP, Telnet, SMTP, POP3, NNTP, IMAP, submission, MySQL,
#: ManageSieve, VNC. SSH is not among them: both sides of it speak at once.
SERVERS_FIRST: Final = frozenset({21, 23, 25, 110, 119, 143, 587, 3306, 4190, *range(5900, 5910)})


class SniffLimits(NamedTuple):
    """How long (seconds) and how far (bytes) a flow is looked into, and on which ports.

    ``ports`` are inclusive ranges; None: all but those whose servers speak first.
    """

    timeout: float = 0.3
    size: int = 8192
    ports: tuple[tuple[int, int], ...] | None = None

    def covers(self, port: int) -> bool:
        """Whether flows to this port are looked into."""
        if self.ports is None:
            return port not in SERVERS_FIRST
        return any(first <= port <= last for first, last in self.ports)


class Talker(Protocol):
    """A flow whose client may have said something."""

    def sighting(self) -> Sighting:
        """What the client has shown by now; complete, too, where enough was looked at."""


T = TypeVar("T", bound=Talker)


class Sniffing(Generic[T]):
    """The flows that wait. ``seen`` is called once for each, unless it is forgotten before."""

    def __init__(
        self,
        call_later: Callable[[float, Callable[[], None]], asyncio.TimerHandle],
        counters: Counter[str],
        seen: Callable[[T, Sighting], None],
    ) -> None:
        self._call_later = call_later
        self._counters = counters
        self._seen = seen
        self._waiting: dict[T, float] = {}  # and until when (time.monotonic), oldest first
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # when it fires (time.monotonic)

    @property
    def flows(self) -> tuple[T, ...]:
        """Those that wait, oldest first."""
        return tuple(self._waiting)

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def begin(self, flow: T, limits: SniffLimits) -> None:
        """Let a flow wait for what its client says."""
        now = time.monotonic()
        until = self._waiting[flow] = now + limits.timeout
        if self._timer is not None and until < self._due:
            self._timer.cancel()  # it was for flows that may wait for longer, before a reload
            self._timer = None
        if self._timer is None:
            self._arm(now, until)

    def _arm(self, now: float, until: float) -> None:
        self._due = until
        self._timer = self._call_later(until - now, self._expire)

    def look(self, flow: T, *, ended: bool) -> None:
        """A client has said more, or (``ended``) will say no more."""
        seen = flow.sighting()
        if seen.complete or ended:
            self.learned(flow, seen)

    def learned(self, flow: T, seen: Sighting) -> None:
        """Go on with a flow by what its client has shown."""
        self._waiting.pop(flow, None)
        self._counters[f"sniffed_{seen.protocol or 'unknown'}"] += 1
        if seen.ech:
            self._counters["sniffed_ech"] += 1
        self._seen(flow, seen)

    def forget(self, flow: T) -> None:
        """It has closed."""
        self._waiting.pop(flow, None)

    def stop(self) -> None:
        """Call nobody any more."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        """Go on with those that have waited long enough, by what is there."""
        now = time.monotonic()
        due = [flow for flow, until in self._waiting.items() if until <= now]
        others = [until for until in self._waiting.values() if until > now]
        self._timer = None
        if others:
            self._arm(now, min(others))
        for flow in due:
            self._counters["sniff_timeout"] += 1
            self.learned(flow, flow.sighting())
