"""Which rules may match, asked of one property of a flow at a time.

Every answer is a bit mask with one bit for each rule, rule 0 in the lowest. The
properties' answers ANDed leave the rules that match, and the lowest bit is the first of
them: the cost does not grow with the number of rules (Lakshman and Stiliadis, "High-speed
policy-based packet forwarding using efficient multi-dimensional range matching", 1998).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from gateway.policy.names import NamePatterns, suffixes_of

#: What a rule asks of a property: bounds as in ``PrefixSet``; None where it asks nothing.
Bounds = tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Axis:
    """A property that is a number: an address or a port.

    The line is cut at ``bounds`` into stretches, on each of which ``masks`` are constant.
    """

    bounds: tuple[int, ...]
    masks: tuple[int, ...]

    @classmethod
    def of(cls, asked: Sequence[Bounds]) -> Axis:
        """The axis for what each rule asks, in the rules' order."""
        mask = 0
        flips: defaultdict[int, int] = defaultdict(int)
        for index, bounds in enumerate(asked):
            if bounds is None:
                mask |= 1 << index
            else:
                for bound in bounds:
                    flips[bound] ^= 1 << index
        cuts = sorted(flips)
        masks = [mask]
        for cut in cuts:
            masks.append(masks[-1] ^ flips[cut])
        return cls(tuple(cuts), tuple(masks))

    def rules_at(self, number: int) -> int:
        """The rules that this number does not rule out."""
        return self.masks[bisect_right(self.bounds, number)]


@dataclass(frozen=True, slots=True)
class Words:
    """A property that is a word: a protocol or an interface."""

    masks: dict[str, int]
    other: int

    @classmethod
    def of(cls, asked: Sequence[Collection[str]]) -> Words:
        """The words for what each rule asks (nothing: any word), in the rules' order."""
        named = {word for words in asked for word in words}
        anything = mask_of(not words for words in asked)
        masks = {word: anything | mask_of(word in words for words in asked) for word in named}
        return cls(masks, anything)

    def rules_at(self, word: str | None) -> int:
        """The rules that this word (None: unknown) does not rule out."""
        return self.other if word is None else self.masks.get(word, self.other)


@dataclass(frozen=True, slots=True)
class Names:
    """The property that is a domain name.

    ``other``: the rules that ask for no name, or search in it, which is not done here.
    """

    exact: dict[str, int]
    suffixes: dict[str, int]
    other: int

    @classmethod
    def of(cls, asked: Sequence[NamePatterns | None]) -> Names:
        """The names for what each rule asks, in the rules' order."""
        exact: defaultdict[str, int] = defaultdict(int)
        suffixes: defaultdict[str, int] = defaultdict(int)
        for index, patterns in enumerate(asked):
            if patterns is not None:
                for name in patterns.exact:
                    exact[name] |= 1 << index
                for suffix in patterns.suffixes:
                    suffixes[suffix] |= 1 << index
        other = mask_of(patterns is None or bool(patterns.patterns) for patterns in asked)
        return cls(dict(exact), dict(suffixes), other)

    def rules_at(self, name: str) -> int:
        """The rules that this name (empty: there is none) does not rule out."""
        mask = self.other | self.exact.get(name, 0)
        suffixes = self.suffixes
        if suffixes:
            for domain in suffixes_of(name):
                mask |= suffixes.get(domain, 0)
        return mask


def mask_of(flags: Iterable[bool]) -> int:
    """The bits of the rules for which the flag is true."""
    return sum(1 << index for index, flag in enumerate(flags) if flag)
