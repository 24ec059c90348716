"""What a soak saw, and whether it is flat. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

#: What memory may seem to grow by in the second half, as a part of it, and at least (bytes).
MEMORY_GROWTH: Final = 0.02
MEMORY_GROWTH_BYTES: Final = 2 << 20
#: An active flow has two pipes while bytes flow, of two descriptors each; idle ones have none.
PIPES: Final = 4


@dataclass(frozen=True, slots=True)
class Moment:
    """All processes of the gateway, ``time_s`` after the start."""

    time_s: float
    flows: int
    descriptors: int
    resident_bytes: int
    anonymous_bytes: int


@dataclass(frozen=True, slots=True)
class Record:
    """A whole soak.

    ``start``: after the first flows had come and gone. ``steady``: while all flows were there
    (the first and the last of ``moments`` of that time). ``end``: after the last flow.
    ``again``: with as many flows as before, opened anew after that.
    ``failed``: active flows that broke or gave back other bytes than they were sent.
    ``silent``: idle flows that did not answer at the end.
    """

    idle_flows: int
    active_flows: int
    moments: tuple[Moment, ...]
    start: Moment
    steady: tuple[int, int]
    end: Moment
    again: Moment
    blocks: int
    failed: int
    silent: int

    @property
    def steady_moments(self) -> tuple[Moment, ...]:
        """The moments of the steady part."""
        first, last = self.steady
        return self.moments[first : last + 1]

    @property
    def settled(self) -> tuple[Moment, ...]:
        """Its second half: by then all is full that is bounded, as the lists of closed flows."""
        steady = self.steady_moments
        return steady[len(steady) // 2 :]

    def problems(self) -> Iterator[str]:
        """What is not as it must be, one by one."""
        steady = self.steady_moments
        if self.failed:
            yield f"{self.failed} active flows failed"
        if self.silent:
            yield f"{self.silent} of {self.idle_flows} idle flows did not answer at the end"
        mean = statistics.fmean(moment.anonymous_bytes for moment in steady)
        allowed = max(mean * MEMORY_GROWTH, MEMORY_GROWTH_BYTES)
        grown = growth(self.settled, lambda moment: moment.anonymous_bytes)
        if grown > allowed:
            yield f"memory grew by {grown / 1024:.0f} KiB, more than {allowed / 1024:.0f} KiB"
        pipes = self.active_flows * PIPES
        grown = growth(self.settled, lambda moment: moment.descriptors)
        if grown > pipes:
            yield f"descriptors grew by {grown:.0f}, more than all pipes, {pipes}"
        if self.end.flows:
            yield f"{self.end.flows} flows stayed behind"
        # Pipes are kept for the next flows, so many as there were at once.
        if self.end.descriptors > self.start.descriptors + pipes:
            before, after = self.start.descriptors, self.end.descriptors
            yield f"{after} descriptors are open, {before} before the flows came"
        # An allocator keeps what it was given (malloc(3)): it must suffice for as many again.
        more = self.again.anonymous_bytes - steady[-1].anonymous_bytes
        if more > allowed:
            yield f"the same flows once more take {more / 1024:.0f} KiB more memory"

    def lines(self) -> Iterator[str]:
        """For people."""
        steady = self.steady_moments
        minutes = (steady[-1].time_s - steady[0].time_s) / 60
        yield f"{self.idle_flows} idle and {self.active_flows} active flows for {minutes:.1f} min,"
        yield f"{self.blocks} blocks there and back, {self.failed} failures"
        grown = {
            "descriptors": growth(self.settled, lambda moment: moment.descriptors),
            "memory, KiB": growth(self.settled, lambda moment: moment.anonymous_bytes) / 1024,
        }
        for name, value in grown.items():
            yield f"{name:<14} grew by {value:.0f} in the second half of that time"
        looks = {
            "before": self.start,
            "with all": steady[-1],
            "after": self.end,
            "all once more": self.again,
        }
        for name, moment in looks.items():
            yield (
                f"{name:<14} {moment.flows} flows, {moment.descriptors} descriptors, "
                f"{moment.anonymous_bytes / (1 << 20):.1f} MiB"
            )

    def to_json(self) -> dict[str, Any]:
        """Everything, moments as columns, with what it comes to."""
        steady = self.steady_moments
        names = [field.name for field in fields(Moment)]
        return {
            **asdict(self),
            "moments": {name: [getattr(each, name) for each in self.moments] for name in names},
            "steady_s": steady[-1].time_s - steady[0].time_s,
            "anonymous_growth_bytes": growth(self.settled, lambda moment: moment.anonymous_bytes),
            "descriptors_growth": growth(self.settled, lambda moment: moment.descriptors),
            "problems": list(self.problems()),
        }


def growth(moments: Sequence[Moment], value: Callable[[Moment], float]) -> float:
    """How much ``value`` rises from first to last, of two or more, by the line that fits best."""
    times = [moment.time_s for moment in moments]
    slope = statistics.linear_regression(times, [value(moment) for moment in moments]).slope
    return slope * (times[-1] - times[0])
