"""A set of domain names and patterns: what can be looked up is in a trie, the rest is tried.

The trie's keys are names with their labels reversed, a dot behind each, so that a suffix
of a name is a prefix of its key (``com.example.`` of ``com.example.www.``), and one walk
finds every suffix. Signs that no name can have tell the kinds apart: ``=`` behind a name
that is meant alone, ``!`` before one of which the names below are meant, ``*`` before one
whose children are. Those two are looked up by the parent of the name that is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

import marisa_trie

from gateway.config.domains import DomainKind, DomainPattern

_BELOW = "!"
_CHILD = "*"
_ALONE = "="


#: A sign, and a name as it stands in a key but for the order: nothing to fold, convert or refuse.
_PLAIN = re.compile(
    r"(\+?\.|\*\.)?((?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?)"
)
_LONGEST_NAME = 253


def plain_key(text: str) -> str | None:
    """The key of a pattern written as most are; None for what takes ``domain_pattern``.

    Lists have a million of these: this takes a third of the time.
    """
    found = _PLAIN.fullmatch(text)
    if found is None or len(text) > _LONGEST_NAME:
        return None
    sign, name = found.groups()
    labels = name.split(".")
    labels.reverse()
    key = ".".join(labels) + "."
    if sign is None:
        return key + _ALONE
    if sign == "+.":
        return key
    return _BELOW + key if sign == "." else f"{_CHILD}{key}{_ALONE}"


def trie_key(pattern: DomainPattern) -> str:
    """The key of a pattern of a kind that can be looked up."""
    key = ".".join(pattern.text.split(".")[::-1]) + "."
    if pattern.kind is DomainKind.EXACT:
        return key + _ALONE
    if pattern.kind is DomainKind.BELOW:
        return _BELOW + key
    if pattern.kind is DomainKind.CHILD:
        return f"{_CHILD}{key}{_ALONE}"
    return key


def pattern_of(key: str) -> DomainPattern:
    """The pattern that a key was made of."""
    kind = DomainKind.SUFFIX
    if key.startswith(_BELOW):
        kind = DomainKind.BELOW
    elif key.startswith(_CHILD):
        kind = DomainKind.CHILD
    elif key.endswith(_ALONE):
        kind = DomainKind.EXACT
    labels = key.strip(_BELOW + _CHILD + _ALONE).removesuffix(".").split(".")
    return DomainPattern(kind, ".".join(labels[::-1]))


class NameSet:
    """Names and patterns. Immutable; asked with canonical names (lower case, no final dot)."""

    __slots__ = ("_patterns", "_trie", "by_parent", "keywords", "regexes")

    def __init__(
        self,
        trie: marisa_trie.Trie,
        keywords: Collection[str] = (),
        regexes: Collection[str] = (),
        *,
        by_parent: bool = True,
    ) -> None:
        """``by_parent``: some keys mean names below them."""
        self._trie = trie
        self.by_parent = by_parent
        self.keywords = tuple(keywords)
        self.regexes = tuple(regexes)
        self._patterns = tuple(map(re.compile, self.regexes))

    @classmethod
    def of_keys(
        cls, keys: Iterable[str], keywords: Iterable[str] = (), regexes: Iterable[str] = ()
    ) -> NameSet:
        """In memory, from keys as ``trie_key`` makes them, in any order."""
        trie = marisa_trie.Trie(keys)
        by_parent = any(True for sign in (_BELOW, _CHILD) for _ in trie.iterkeys(sign))
        return cls(trie, dict.fromkeys(keywords), dict.fromkeys(regexes), by_parent=by_parent)

    def __reduce__(self) -> tuple[object, ...]:
        arguments = (self.trie_bytes(), self.keywords, self.regexes, self.by_parent)
        return _restored, arguments

    def __len__(self) -> int:
        return len(self._trie) + len(self.keywords) + len(self.regexes)

    def trie_bytes(self) -> bytes:
        """The trie, for a file."""
        return bytes(self._trie.tobytes())

    def matches(self, name: str) -> bool:
        """Whether a name is in the set."""
        labels = name.split(".")
        labels.reverse()
        if self._trie.prefixes(".".join(labels) + "." + _ALONE):
            return True
        if self.by_parent and len(labels) > 1:
            parent = ".".join(labels[:-1]) + "."
            if self._trie.prefixes(_BELOW + parent) or _CHILD + parent + _ALONE in self._trie:
                return True
        if self.keywords and any(word in name for word in self.keywords):
            return True
        return bool(self._patterns) and any(pattern.search(name) for pattern in self._patterns)

    def match(self, name: str) -> DomainPattern | None:
        """The entry by which a name is in the set, the longest of several."""
        labels = name.split(".")[::-1]
        found = self._trie.prefixes(".".join(labels) + "." + _ALONE)
        parent = ".".join(labels[:-1]) + "."
        if self.by_parent and len(labels) > 1:
            found += self._trie.prefixes(_BELOW + parent)
            found += [key for key in (_CHILD + parent + _ALONE,) if key in self._trie]
        if found:
            return pattern_of(max(found, key=len))
        for word in self.keywords:
            if word in name:
                return DomainPattern(DomainKind.KEYWORD, word)
        for pattern in self._patterns:
            if pattern.search(name):
                return DomainPattern(DomainKind.REGEX, pattern.pattern)
        return None

    def patterns(self) -> Iterator[DomainPattern]:
        """Everything that is in it, by kind and then by reversed labels."""
        yield from map(pattern_of, self._trie.iterkeys())
        yield from (DomainPattern(DomainKind.KEYWORD, word) for word in self.keywords)
        yield from (DomainPattern(DomainKind.REGEX, text) for text in self.regexes)


def _restored(
    trie: bytes, keywords: tuple[str, ...], regexes: tuple[str, ...], by_parent: bool
) -> NameSet:
    restored = marisa_trie.Trie()
    restored.frombytes(trie)
    return NameSet(restored, keywords, regexes, by_parent=by_parent)


#: The set with no name in it.
NO_NAMES = NameSet(marisa_trie.Trie(), by_parent=False)
