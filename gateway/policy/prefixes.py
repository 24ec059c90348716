"""Immutable sets of addresses, IPv4 and IPv6 together, as sorted intervals.

Both families live on one number line: IPv4 first, then a gap, then IPv6. A set is a
sorted tuple of the numbers at which membership changes, so one bisection answers for both.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Network = IPv4Network | IPv6Network

#: Where IPv6 begins on the number line; the gap keeps intervals of the families apart.
IPV6_START = 1 << 33


@lru_cache(maxsize=8192)
def address_number(host: str) -> int:
    """Place of an address (canonical text, no zone) on the number line.

    Remembered, because a LAN has few hosts and flows repeat their destinations: reading
    the text costs more than the whole decision. Raises ``ValueError`` for a name.
    """
    if ":" in host:
        return IPV6_START + int(IPv6Address(host))
    return int(IPv4Address(host))


def interval(network: Network) -> tuple[int, int]:
    """First number of a network on the line, and the first behind it."""
    start = int(network.network_address)
    if isinstance(network, IPv6Network):
        start += IPV6_START
    return start, start + (1 << (network.max_prefixlen - network.prefixlen))


@dataclass(frozen=True, slots=True)
class PrefixSet:
    """A set of addresses.

    ``bounds`` are strictly ascending, an even number of them: each pair is one interval
    ``[first, behind)``, and no two intervals touch.
    """

    bounds: tuple[int, ...] = ()

    @classmethod
    def from_networks(cls, networks: Iterable[Network]) -> PrefixSet:
        """All addresses of all networks."""
        return cls.from_intervals(map(interval, networks))

    @classmethod
    def union(cls, sets: Iterable[PrefixSet]) -> PrefixSet:
        """All addresses of all sets."""
        return cls.from_intervals(interval for each in sets for interval in each.intervals)

    @classmethod
    def from_intervals(cls, intervals: Iterable[tuple[int, int]]) -> PrefixSet:
        """All addresses of all ``[first, behind)``, in any order."""
        bounds: list[int] = []
        for start, end in sorted(intervals):
            if bounds and start <= bounds[-1]:
                bounds[-1] = max(bounds[-1], end)
            else:
                bounds += (start, end)
        return cls(tuple(bounds))

    def contains(self, number: int) -> bool:
        """Whether the address with this place on the number line is in the set."""
        return bool(bisect_right(self.bounds, number) & 1)

    @property
    def intervals(self) -> Sequence[tuple[int, int]]:
        """``(first, behind)`` of each interval, ascending."""
        return tuple(zip(self.bounds[::2], self.bounds[1::2], strict=True))

    def __and__(self, other: PrefixSet) -> PrefixSet:
        """The addresses in both."""
        bounds: list[int] = []
        ours, theirs = iter(self.intervals), iter(other.intervals)
        one, two = next(ours, None), next(theirs, None)
        while one and two:
            start, end = max(one[0], two[0]), min(one[1], two[1])
            if start < end:
                bounds += (start, end)
            if one[1] < two[1]:
                one = next(ours, None)
            else:
                two = next(theirs, None)
        return PrefixSet(tuple(bounds))

    @property
    def networks(self) -> tuple[Network, ...]:
        """The shortest list of CIDRs that says the same, IPv4 first, ascending."""
        return tuple(
            network for start, end in self.intervals for network in networks_of(start, end)
        )


def networks_of(start: int, end: int) -> Iterator[Network]:
    """The CIDRs of one interval."""
    for first, length in blocks_of(start, end):
        if first < IPV6_START:
            yield IPv4Network((first, length))
        else:
            yield IPv6Network((first - IPV6_START, length))


def blocks_of(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The same as first numbers on the line and prefix lengths.

    At each step the largest aligned block that fits.
    """
    base, width = (0, 32) if start < IPV6_START else (IPV6_START, 128)
    at, end = start - base, end - base
    while at < end:
        aligned = (at & -at).bit_length() - 1 if at else width
        size = min(aligned, (end - at).bit_length() - 1)
        yield base + at, width - size
        at += 1 << size
