"""What checks look at: the configuration, its rules wherever they stand, and what comes with us."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

from gateway.config.findings import Path
from gateway.config.rules import Match, Rule
from gateway.config.schema import Config
from gateway.config.values import Network


@dataclass(frozen=True, slots=True)
class Subject:
    """A configuration. ``shipped``: the rule sets that exist without being in it."""

    config: Config
    shipped: frozenset[str]

    @property
    def lists(self) -> Iterator[tuple[Path, tuple[Rule, ...]]]:
        """Every list of rules, the main one first."""
        yield ("rules",), self.config.rules
        for name, rules in self.config.lists.items():
            yield ("lists", name), rules

    @property
    def rules(self) -> Iterator[tuple[Path, Rule]]:
        """Every rule of every list."""
        for path, rules in self.lists:
            for index, rule in enumerate(rules):
                yield (*path, index), rule

    @property
    def matches(self) -> Iterator[tuple[Path, Match]]:
        """Every rule, and every condition inside one."""
        for path, rule in self.rules:
            yield from nested(path, rule)


def nested(path: Path, match: Match) -> Iterator[tuple[Path, Match]]:
    """A condition, and those inside it."""
    yield path, match
    for key, inner in (("all", match.all), ("any", match.any), ("not", match.not_)):
        for index, each in enumerate(inner):
            yield from nested((*path, key, index), each)


def named_sets(config: Config) -> set[str]:
    """The rule sets that rules name, wherever in them."""
    matches = [match for _, match in Subject(config, frozenset()).matches]
    found = {name for match in matches for name in match.rule_set}
    return found | {
        each for match in matches for each in match.destination if isinstance(each, str)
    }


def overlap(one: Network, other: Network) -> bool:
    """Whether some address is in both."""
    return one.version == other.version and one.overlaps(other)


def reachable(start: str, leads_to: Mapping[str, Set[str]]) -> set[str]:
    """All that a name leads to, itself included, by however many steps."""
    seen: set[str] = set()
    ahead = [start]
    while ahead:
        name = ahead.pop()
        if name not in seen:
            seen.add(name)
            ahead += leads_to[name]
    return seen
