"""What a rule asks of a destination's name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

#: Before a suffix: the domain itself, and all that is below it.
SUFFIX = "+."
KEYWORD = "keyword:"
REGEX = "regex:"


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
        """Read ``a.example``, ``+.a.example``, ``*.a.example``, ``keyword:a``, ``regex:^a``.

        Texts are lower case with A-labels, as ``config.scalars.read_domain`` leaves them.
        A ``*`` stands for exactly one label.
        """
        exact: list[str] = []
        suffixes: list[str] = []
        searched: list[str] = []
        for text in texts:
            if text.startswith(SUFFIX):
                suffixes.append(text.removeprefix(SUFFIX))
            elif text.startswith(KEYWORD):
                searched.append(re.escape(text.removeprefix(KEYWORD)))
            elif text.startswith(REGEX):
                searched.append(text.removeprefix(REGEX))
            elif "*" in text:
                searched.append(f"^{re.escape(text).replace(re.escape('*'), '[^.]+')}$")
            else:
                exact.append(text)
        return cls(frozenset(exact), frozenset(suffixes), tuple(map(re.compile, searched)))

    def matches(self, name: str) -> bool:
        """Whether a name (lower case, A-labels, no final dot) is meant."""
        if name in self.exact or any(each in self.suffixes for each in suffixes_of(name)):
            return True
        return any(pattern.search(name) for pattern in self.patterns)


def suffixes_of(name: str) -> Iterator[str]:
    """The name, and each domain that it is in: ``a.b.c``, ``b.c``, ``c``."""
    while name:
        yield name
        name = name.partition(".")[2]
