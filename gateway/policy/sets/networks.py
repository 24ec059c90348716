"""CIDRs of any number, made as they are walked: in memory they are the bounds of intervals.

An ``ip_network`` takes a quarter of a kilobyte, and the garbage collector has to look at it each
time. The kernel's plan has as many as rule sets have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cached_property

from gateway.policy.prefixes import IPV6_START, Network, blocks_of
from gateway.policy.sets.intervals import IntervalSet


class CompactNetworks(Collection[Network]):
    """The shortest list of CIDRs for a set of addresses. Immutable."""

    def __init__(self, inside: IntervalSet) -> None:
        self._inside = inside

    def __iter__(self) -> Iterator[Network]:
        return self._inside.networks()

    @cached_property
    def _count(self) -> int:
        return sum(1 for _ in self._blocks())

    def __len__(self) -> int:
        return self._count

    def __contains__(self, network: object) -> bool:
        return any(network == each for each in self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CompactNetworks):
            return NotImplemented
        return self._inside.parts == other._inside.parts

    def __hash__(self) -> int:
        return hash(self.packed())

    def packed(self) -> bytes:
        """Bytes that tell these networks from all others."""
        return b"|".join(part.tobytes() for part in self._inside.parts)

    def has(self, number: int) -> bool:
        """Whether an address (``prefixes.address_number``) is in one of them."""
        return self._inside.contains(number)

    def texts(self) -> Iterator[str]:
        """Each as ``ADDRESS/LENGTH``; of IPv6 without ``::``."""
        for start, length in self._blocks():
            if start < IPV6_START:
                octets = (start >> 24, start >> 16 & 255, start >> 8 & 255, start & 255)
                yield f"{'.'.join(map(str, octets))}/{length}"
            else:
                digits = f"{start - IPV6_START:032x}"
                groups = (digits[at : at + 4] for at in range(0, 32, 4))
                yield f"{':'.join(groups)}/{length}"

    def _blocks(self) -> Iterator[tuple[int, int]]:
        for start, behind in self._inside.intervals():
            yield from blocks_of(start, behind)


def texts(networks: Collection[Network]) -> Iterator[str]:
    """Each of them as text."""
    return networks.texts() if isinstance(networks, CompactNetworks) else map(str, networks)
