"""Rule sets: named lists of prefixes and names, however many, however kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from gateway.policy.prefixes import Network, interval
from gateway.policy.sets.entries import Skipped
from gateway.policy.sets.formats import Contents
from gateway.policy.sets.intervals import NO_PREFIXES, IntervalSet
from gateway.policy.sets.names import NO_NAMES, NameSet


class About(NamedTuple):
    """What a list says about itself."""

    description: str = ""
    source: str = ""
    licence: str = ""


UNSAID = About()


@dataclass(frozen=True, slots=True)
class RuleSetData:
    """What is in a rule set, and where it comes from.

    ``skipped``: what the list has and no rule set can. ``format``: as it was read.
    """

    name: str
    prefixes: IntervalSet = NO_PREFIXES
    names: NameSet = NO_NAMES
    about: About = UNSAID
    skipped: tuple[Skipped, ...] = ()
    format: str = ""

    @classmethod
    def of(cls, name: str, contents: Contents) -> RuleSetData:
        """A small set, in memory."""
        entries = contents.entries
        names = NameSet.of_keys(entries.keys, entries.keywords, entries.regexes)
        prefixes = IntervalSet.of(entries.intervals)
        about = About(*contents.about)
        return cls(name, prefixes, names, about, entries.skipped, contents.format)

    @classmethod
    def of_networks(cls, name: str, networks: Iterable[Network]) -> RuleSetData:
        """A small set of prefixes."""
        return cls(name, IntervalSet.of(map(interval, networks)))

    def __len__(self) -> int:
        """How many intervals of addresses, names and patterns."""
        return len(self.prefixes) + len(self.names)

    @property
    def networks(self) -> tuple[Network, ...]:
        """Its addresses as the shortest list of CIDRs, IPv4 first, ascending."""
        return tuple(self.prefixes.networks())
