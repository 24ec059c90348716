"""Prefixes of any number in flat memory: bounds of intervals, to be bisected where they lie.

The memory may be a mapped file, which costs a process nothing but the pages that it looks
at, and those once for all processes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from gateway.policy.prefixes import IPV6_START, Network, networks_of

_IPV4_END = 1 << 32
_IPV6_END = 1 << 128
_LOW = (1 << 64) - 1


class IntervalSet:
    """A set of addresses, as ``PrefixSet``. Immutable.

    ``ipv4`` are its bounds below ``IPV6_START`` as 32-bit numbers; ``high`` and ``low`` the
    halves of those above. Where the last interval ends with the family's last address, its
    end is left out: it would not fit, and no look-up needs it.
    """

    __slots__ = ("_high", "_ipv4", "_low")

    def __init__(self, ipv4: memoryview, high: memoryview, low: memoryview) -> None:
        self._ipv4 = ipv4
        self._high = high
        self._low = low

    @classmethod
    def of(cls, intervals: Iterable[tuple[int, int]]) -> IntervalSet:
        """In memory, from ``[first, behind)`` in any order, overlapping or not."""
        ipv4, high, low = array("I"), array("Q"), array("Q")
        for start, behind in _merged(intervals):
            if start < IPV6_START:
                ipv4.extend((start, behind) if behind < _IPV4_END else (start,))
                continue
            for bound in (start - IPV6_START, behind - IPV6_START):
                if bound < _IPV6_END:
                    high.append(bound >> 64)
                    low.append(bound & _LOW)
        return cls(memoryview(ipv4), memoryview(high), memoryview(low))

    def __reduce__(self) -> tuple[object, ...]:
        return restored, tuple(part.tobytes() for part in self.parts)

    def __len__(self) -> int:
        """How many intervals."""
        return (len(self._ipv4) + 1) // 2 + (len(self._high) + 1) // 2

    @property
    def parts(self) -> tuple[memoryview, memoryview, memoryview]:
        """The memory, for a file."""
        return self._ipv4, self._high, self._low

    def of_version(self, version: int) -> IntervalSet:
        """Those of one IP version, in the same memory."""
        if version == 4:
            return IntervalSet(self._ipv4, NO_PREFIXES._high, NO_PREFIXES._low)
        return IntervalSet(NO_PREFIXES._ipv4, self._high, self._low)

    def contains(self, number: int) -> bool:
        """Whether the address with this place on the number line is in the set."""
        if number < IPV6_START:
            return bool(bisect_right(self._ipv4, number) & 1)
        number -= IPV6_START
        high, low = number >> 64, number & _LOW
        first = bisect_left(self._high, high)
        behind = bisect_right(self._high, high, first)
        return bool(bisect_right(self._low, low, first, behind) & 1)

    def intervals(self) -> Iterator[tuple[int, int]]:
        """``(first, behind)`` of each interval on the number line, ascending, none touching."""
        bounds = iter(self._ipv4)
        for start in bounds:
            yield start, next(bounds, _IPV4_END)
        wide = iter(zip(self._high, self._low, strict=True))
        for high, low in wide:
            end = next(wide, None)
            behind = _IPV6_END if end is None else end[0] << 64 | end[1]
            yield IPV6_START + (high << 64 | low), IPV6_START + behind

    def networks(self) -> Iterator[Network]:
        """The shortest list of CIDRs that says the same, IPv4 first, ascending."""
        for start, behind in self.intervals():
            yield from networks_of(start, behind)


def _merged(intervals: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The same addresses, ascending, with no two intervals that touch."""
    start = behind = -1
    for first, end in sorted(intervals):
        if first > behind:
            if behind >= 0:
                yield start, behind
            start, behind = first, end
        elif end > behind:
            behind = end
    if behind >= 0:
        yield start, behind


def restored(ipv4: bytes, high: bytes, low: bytes) -> IntervalSet:
    """The set of which these are the parts."""
    wide = (memoryview(high).cast("Q"), memoryview(low).cast("Q"))
    return IntervalSet(memoryview(ipv4).cast("I"), *wide)


#: The set with no address in it.
NO_PREFIXES = IntervalSet.of(())
