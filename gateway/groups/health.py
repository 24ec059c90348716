"""How a member of a group is, by what its probes have shown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

#: Probes that are remembered of each member.
KEPT: Final = 10
#: A member that was down is taken again after so many good probes in a row: one that comes and
#: goes must not carry flows along.
RISES: Final = 2
#: The latency of a member is the median of so many good probes, the last.
MEASURED: Final = 3


class Result(NamedTuple):
    """One probe: when it ended (Unix time), how long it took (seconds), or why it failed."""

    at: float
    seconds: float
    failure: str = ""

    @property
    def ok(self) -> bool:
        """Whether it was answered as it should be."""
        return not self.failure


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of one member. ``up`` is None before the first probe has ended.

    ``since``: when ``up`` became what it is (Unix time). ``rises``: good probes in a row, of a
    member that is down. ``results``: the last at the end.
    """

    up: bool | None = None
    since: float = 0.0
    rises: int = 0
    results: tuple[Result, ...] = ()

    def after(self, result: Result) -> Health:
        """With one more probe."""
        results = (*self.results, result)[-KEPT:]
        if not result.ok:
            since = self.since if self.up is False else result.at
            return Health(False, since, 0, results)
        rises = self.rises + 1
        if self.up is False and rises < RISES:
            return replace(self, rises=rises, results=results)
        since = self.since if self.up else result.at
        return Health(True, since, 0, results)

    @property
    def usable(self) -> bool:
        """Whether nothing speaks against it."""
        return self.up is not False

    @property
    def latency(self) -> float | None:
        """What its probes took lately (seconds); None where none went well."""
        good = sorted(result.seconds for result in self._good[-MEASURED:])
        return good[(len(good) - 1) // 2] if good else None

    @property
    def failure(self) -> str:
        """Why the last bad probe failed; empty where none did."""
        return next((each.failure for each in reversed(self.results) if not each.ok), "")

    @property
    def _good(self) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.ok)


UNKNOWN: Final = Health()
