"""How a person writes which names are meant: one name, all below it, or a pattern.

====================  =====================================================
``a.example``         this name alone
``+.a.example``       it and every name below it
``.a.example``        every name below it, without itself
``*.a.example``       names exactly one label below it; ``*`` in other places
                      stands for one label as well
``keyword:word``      every name that has the word in it
``regex:pattern``     every name that the pattern (of Python's ``re``) is found in
====================  =====================================================

The first four are those of Clash's domain lists, so that lists can be copied as they are.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

#: A canonical name: lower case, no final dot, labels of RFC 1123 section 2.1 (underscore
#: tolerated, as resolvers do), 253 characters at most (RFC 1035 section 2.3.4).
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*{_LABEL}")
_WITH_STARS = re.compile(rf"(?=.{{1,253}}\Z)(?:(?:{_LABEL}|\*)\.)*(?:{_LABEL}|\*)")


class DomainKind(StrEnum):
    """What a pattern's text is compared with."""

    EXACT = "exact"
    SUFFIX = "suffix"
    BELOW = "below"
    CHILD = "child"
    KEYWORD = "keyword"
    REGEX = "regex"


class DomainPattern(NamedTuple):
    """Which names are meant; ``text`` is canonical and has no sign of the kind in it."""

    kind: DomainKind
    text: str

    def __str__(self) -> str:
        return _SIGNS[self.kind] + self.text


_SIGNS = {
    DomainKind.EXACT: "",
    DomainKind.SUFFIX: "+.",
    DomainKind.BELOW: ".",
    DomainKind.CHILD: "*.",
    DomainKind.KEYWORD: "keyword:",
    DomainKind.REGEX: "regex:",
}


def canonical_name(text: str) -> str | None:
    """A host name in lower case, without its final dot, as ASCII (RFC 3490); None for none.

    A name whose last label is a number is an address that was mistyped (RFC 3696 section 2).
    """
    name = text.lower().removesuffix(".")
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            return None
    if not _NAME.fullmatch(name) or name.rpartition(".")[2].isdigit():
        return None
    return name


def domain_pattern(text: str) -> DomainPattern:
    """Read a pattern. Raises ``ValueError`` that says what is wrong."""
    sign, colon, rest = text.partition(":")
    if colon and sign == "keyword":
        return keyword(rest)
    if colon and sign == "regex":
        return regex(rest)
    for kind in (DomainKind.SUFFIX, DomainKind.BELOW, DomainKind.CHILD):
        if text.startswith(_SIGNS[kind]):
            name = canonical_name(text.removeprefix(_SIGNS[kind]))
            if name is not None:
                return DomainPattern(kind, name)
    if "*" in text:
        return wildcard(text)
    name = canonical_name(text)
    if name is None:
        raise ValueError("not a domain name")
    return DomainPattern(DomainKind.EXACT, name)


def keyword(text: str) -> DomainPattern:
    """Every name with ``text`` in it. Raises ``ValueError`` where no name can have it."""
    word = text.lower()
    if not re.fullmatch(r"[a-z0-9_.-]+", word):
        raise ValueError("a keyword has letters, digits, dots and hyphens only")
    return DomainPattern(DomainKind.KEYWORD, word)


def regex(text: str) -> DomainPattern:
    """Every name that ``text`` is found in. Raises ``ValueError`` where it is no pattern."""
    if not text:
        raise ValueError("an empty expression matches every name")
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return DomainPattern(DomainKind.REGEX, text)


def wildcard(text: str) -> DomainPattern:
    """Names with any one label for each ``*``. Raises ``ValueError`` where it is no name."""
    name = text.lower().removesuffix(".")
    if not _WITH_STARS.fullmatch(name):
        raise ValueError("not a domain name: `*` stands for a whole label")
    first, _, rest = name.partition(".")
    if first == "*" and "*" not in rest and rest:
        return DomainPattern(DomainKind.CHILD, rest)
    labels = (r"[^.]+" if label == "*" else re.escape(label) for label in name.split("."))
    return DomainPattern(DomainKind.REGEX, rf"^{re.escape('.').join(labels)}$")
