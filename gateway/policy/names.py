"""What a rule asks of a destination's name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gateway.config.domains import DomainKind, domain_pattern


@dataclass(frozen=True, slots=True)
class NamePatterns:
    """Names, any of which will do.

    ``exact`` names; ``suffixes``: a domain with all below it; ``patterns`` are
    searched for.
    """

    exact: frozenset[str] = frozenset()
    suffixes: frozenset[str] = frozenset()
    patterns: tuple[re.Pattern[str], ...] = ()

    @classmethod
    def of(cls, texts: Iterable[str]) -> NamePatterns:
        """Read patterns as ``config.domains`` describes them. Raises ``ValueError``."""
        exact: list[str] = []
        suffixes: list[str] = []
        searched: list[str] = []
        for kind, text in map(domain_pattern, texts):
            if kind is DomainKind.EXACT:
                exact.append(text)
            elif kind is DomainKind.SUFFIX:
                suffixes.append(text)
            else:
                searched.append(_SEARCHED[kind].format(text if kind is _RAW else re.escape(text)))
        return cls(frozenset(exact), frozenset(suffixes), tuple(map(re.compile, searched)))

    def matches(self, name: str) -> bool:
        """Whether a name (lower case, A-labels, no final dot) is meant."""
        if name in self.exact or any(each in self.suffixes for each in suffixes_of(name)):
            return True
        return any(pattern.search(name) for pattern in self.patterns)


_RAW = DomainKind.REGEX
_SEARCHED = {
    DomainKind.BELOW: r"\.{}$",
    DomainKind.CHILD: r"^[^.]+\.{}$",
    DomainKind.KEYWORD: "{}",
    DomainKind.REGEX: "{}",
}


def suffixes_of(name: str) -> Iterator[str]:
    """The name, and each domain that it is in: ``a.b.c``, ``b.c``, ``c``."""
    while name:
        yield name
        name = name.partition(".")[2]
