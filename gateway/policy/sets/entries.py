"""What a reader found in a list: names, prefixes, and what it could not make use of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address
from typing import NamedTuple

from gateway.config.domains import (
    DomainKind,
    DomainPattern,
    canonical_name,
    domain_pattern,
    keyword,
    regex,
    wildcard,
)
from gateway.policy.prefixes import IPV6_START, Network, interval
from gateway.policy.sets.names import plain_key, trie_key

#: Longest piece of an entry that a report shows.
SHOWN_CHARACTERS = 60

_OCTET = r"(0|[1-9][0-9]{0,2})"
_IPV4 = re.compile(rf"{_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}(?:/([0-9]{{1,2}}))?")
_ADDRESS_LIKE = re.compile(r"[0-9./]+|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(?:/[0-9]*)?")
_LENGTH = re.compile("[0-9]{1,3}")
_MAPPED_START = IPV6_START + (0xFFFF << 32)
_IPV4_SIZE = 1 << 32


class Skipped(NamedTuple):
    """Entries of one kind that a set is without: how many, and the first of them.

    ``line`` is 0 in formats without lines.
    """

    kind: str
    entries: int
    line: int
    text: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{self.entries} × {self.kind} ({where}{self.text!r})"


class Entries:
    """Collects a set while it is read; canonical forms only."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.keywords: list[str] = []
        self.regexes: list[str] = []
        self.intervals: list[tuple[int, int]] = []
        self._skipped: dict[str, Skipped] = {}

    @classmethod
    def of(cls, written: Iterable[Network | str]) -> Entries:
        """What the configuration's schema has read."""
        entries = cls()
        entries.update(written)
        return entries

    def update(self, written: Iterable[Network | str]) -> None:
        """Add what the configuration's schema has read."""
        for entry in written:
            if isinstance(entry, str):
                self.pattern(entry)
            else:
                self.intervals.append(interval(entry))

    def __len__(self) -> int:
        return len(self.keys) + len(self.keywords) + len(self.regexes) + len(self.intervals)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What could not be made use of, by kind, in the order of the first of each."""
        return tuple(self._skipped.values())

    def skip(self, kind: str, line: int, text: str) -> None:
        """Count an entry that cannot be made use of."""
        known = self._skipped.get(kind)
        if known is None:
            shown = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
            self._skipped[kind] = Skipped(kind, 1, line, shown)
        else:
            self._skipped[kind] = known._replace(entries=known.entries + 1)

    def name(self, kind: DomainKind, text: str, line: int = 0) -> None:
        """A name, meant as ``kind`` says (one of those that can be looked up)."""
        name = canonical_name(text)
        if name is None:
            self.skip("not a domain name", line, text)
        else:
            self.keys.append(trie_key(DomainPattern(kind, name)))

    def plain(self, text: str) -> bool:
        """A name or pattern, or an IPv4 CIDR, as most are written; False for all else."""
        if text[0].isdigit():
            found = _ipv4_interval(text)
            if found is not None:
                self.intervals.append(found)
                return True
        key = plain_key(text)
        if key is not None:
            self.keys.append(key)
        return key is not None

    def keyword(self, text: str, line: int = 0) -> None:
        """Every name with this in it."""
        self._try(keyword, text, line)

    def regex(self, text: str, line: int = 0) -> None:
        """Every name that this is found in."""
        self._try(regex, text, line)

    def wildcard(self, text: str, line: int = 0) -> None:
        """Names with any one label for each ``*``."""
        self._try(wildcard, text, line)

    def pattern(self, text: str, line: int = 0) -> None:
        """Names as our own configuration writes them."""
        self._try(domain_pattern, text, line)

    def network(self, text: str, line: int = 0) -> None:
        """A CIDR or an address, host bits ignored, IPv4-mapped ones as IPv4."""
        found = read_interval(text)
        if found is None:
            self.skip("not a CIDR or an address", line, text)
        else:
            self.intervals.append(found)

    def either(self, text: str, line: int = 0) -> None:
        """A network where it looks like one, a name or pattern else."""
        if self.plain(text):
            return
        if _ADDRESS_LIKE.fullmatch(text):
            self.network(text, line)
        else:
            self.pattern(text, line)

    def _try(self, read: Callable[[str], DomainPattern], text: str, line: int) -> None:
        try:
            pattern = read(text)
        except ValueError as error:
            self.skip(str(error).partition(":")[0], line, text)
            return
        if pattern.kind is DomainKind.KEYWORD:
            self.keywords.append(pattern.text)
        elif pattern.kind is DomainKind.REGEX:
            self.regexes.append(pattern.text)
        else:
            self.keys.append(trie_key(pattern))


def read_interval(text: str) -> tuple[int, int] | None:
    """Place of a CIDR or an address on the number line; None for anything else."""
    return _ipv4_interval(text) or _ipv6_interval(text)


def _ipv4_interval(text: str) -> tuple[int, int] | None:
    matched = _IPV4.fullmatch(text)
    if matched is None:
        return None
    one, two, three, four, length = matched.groups()
    try:
        start = int.from_bytes((int(one), int(two), int(three), int(four)), "big")
    except ValueError:
        return None  # an octet above 255
    bits = 32 if length is None else int(length)
    if bits > 32:
        return None
    size = 1 << (32 - bits)
    start &= -size
    return start, start + size


def _ipv6_interval(text: str) -> tuple[int, int] | None:
    address, slash, length = text.partition("/")
    if ":" not in address or "%" in address or (slash and not _LENGTH.fullmatch(length)):
        return None
    bits = int(length) if slash else 128
    try:
        number = int(IPv6Address(address))
    except ValueError:
        return None
    if bits > 128:
        return None
    size = 1 << (128 - bits)
    start = IPV6_START + (number & -size)
    behind = start + size
    if start >= _MAPPED_START and behind <= _MAPPED_START + _IPV4_SIZE:
        return start - _MAPPED_START, behind - _MAPPED_START
    return start, behind
