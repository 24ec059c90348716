"""Flows that wait for their client's first bytes, because their way hangs on what is in them.

Nothing is taken out of a socket: it is only looked at, and travels on first. A flow costs
one look for each piece its client sends, and a place in a queue; there is one timer for all.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from gateway.sniff import stream
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


class _Wait(NamedTuple):
    """When the wait ends (``time.monotonic``), and how many bytes are looked at."""

    until: float
    size: int


class Talker(Protocol):
    """A flow whose client may have said something."""

    def first_bytes(self, most: int) -> bytes:
        """What the client has sent already, at most so many bytes; it stays in its socket."""


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
        self._waiting: dict[T, _Wait] = {}  # oldest first
        self._timer: asyncio.TimerHandle | None = None

    @property
    def flows(self) -> tuple[T, ...]:
        """Those that wait, oldest first."""
        return tuple(self._waiting)

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def begin(self, flow: T, limits: SniffLimits) -> None:
        """Let a flow wait for what its client says."""
        self._waiting[flow] = _Wait(time.monotonic() + limits.timeout, limits.size)
        if self._timer is None:
            self._timer = self._call_later(limits.timeout, self._expire)

    def look(self, flow: T, *, ended: bool) -> None:
        """Look at what a waiting client has said by now. ``ended``: it will say nothing more."""
        size = self._waiting[flow].size
        data = flow.first_bytes(size)
        seen = stream.sighting(data)
        if not (seen.complete or ended):
            if len(data) < size:
                return
            self._counters["sniff_limit"] += 1
        self._finish(flow, seen)

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
        due = [(flow, wait) for flow, wait in self._waiting.items() if wait.until <= now]
        others = [wait.until for wait in self._waiting.values() if wait.until > now]
        self._timer = self._call_later(min(others) - now, self._expire) if others else None
        for flow, wait in due:
            self._counters["sniff_timeout"] += 1
            self._finish(flow, stream.sighting(flow.first_bytes(wait.size)))

    def _finish(self, flow: T, seen: Sighting) -> None:
        del self._waiting[flow]
        self._counters[f"sniffed_{seen.protocol or 'unknown'}"] += 1
        if seen.ech:
            self._counters["sniffed_ech"] += 1
        self._seen(flow, seen)
