"""A compiled rule set: one file, mapped by every process that asks it.

Layout: mark, digest of what follows, length of the header; the header as JSON; then,
each from a multiple of eight, the bounds of ``IntervalSet`` and the trie of ``NameSet``.
The numbers are in this machine's byte order, which the header names. The trie's library
does not survive damaged data, so the digest is compared before anything is used.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

import marisa_trie

from gateway.errors import GatewayError
from gateway.policy.rulesets import About, RuleSetData
from gateway.policy.sets.entries import Skipped
from gateway.policy.sets.formats import Contents
from gateway.policy.sets.intervals import IntervalSet
from gateway.policy.sets.names import NameSet

#: Changes with the layout, and with what the readers make of a list.
FORMAT_VERSION: Final = 1

_Header = dict[str, Any]

_MARK: Final = b"gwset\0\r\n"
_DIGEST_BYTES: Final = 32
_HEAD: Final = struct.Struct(f"<{len(_MARK)}s{_DIGEST_BYTES}sQ")


class Place(NamedTuple):
    """Which compiled set: the digest tells it from another that took its path."""

    path: Path
    digest: bytes


class StoredPrefixes(IntervalSet):
    """Prefixes in a mapped file; other processes are sent no more than where it lies."""

    __slots__ = ("place",)

    def __init__(self, place: Place, ipv4: memoryview, high: memoryview, low: memoryview) -> None:
        super().__init__(ipv4, high, low)
        self.place = place

    def __reduce__(self) -> tuple[object, ...]:
        return _stored_prefixes, self.place


class StoredNames(NameSet):
    """Names in a mapped file; other processes are sent no more than where it lies."""

    __slots__ = ("_memory", "place")

    def __init__(self, place: Place, memory: memoryview, trie: memoryview, header: _Header) -> None:
        mapped = marisa_trie.Trie()
        mapped.map(trie)
        super().__init__(
            mapped, header["keywords"], header["regexes"], by_parent=header["by_parent"]
        )
        # The trie does not hold what it maps: without this, its pages could go.
        self._memory = memory
        self.place = place

    def __reduce__(self) -> tuple[object, ...]:
        return _stored_names, self.place


def _stored_prefixes(path: Path, digest: bytes) -> IntervalSet:
    return open_stored(path, "", digest).prefixes


def _stored_names(path: Path, digest: bytes) -> NameSet:
    return open_stored(path, "", digest).names


def pack(contents: Contents) -> bytes:
    """The file of a set that was read."""
    entries = contents.entries
    names = NameSet.of_keys(entries.keys, entries.keywords, entries.regexes)
    prefixes = IntervalSet.of(entries.intervals)
    parts = [*(part.tobytes() for part in prefixes.parts), names.trie_bytes()]
    header = {
        "version": FORMAT_VERSION,
        "byteorder": sys.byteorder,
        "format": contents.format,
        "parts": [len(part) for part in parts],
        "by_parent": names.by_parent,
        "keywords": names.keywords,
        "regexes": names.regexes,
        "about": contents.about,
        "skipped": entries.skipped,
    }
    body = _padded(json.dumps(header).encode())
    length = len(body)
    body += b"".join(map(_padded, parts))
    return (
        _HEAD.pack(_MARK, hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest(), length) + body
    )


def _padded(data: bytes) -> bytes:
    return data + b" " * (-len(data) % 8)


def open_stored(path: Path, name: str, digest: bytes | None = None) -> RuleSetData:
    """Map a compiled set. ``digest``: who sent it has verified the file, and it had this one.

    Raises ``GatewayError`` where the file is missing, damaged, or of another version.
    """
    try:
        with path.open("rb") as file:
            memory = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    except (OSError, ValueError) as error:
        raise GatewayError(
            f"{path} cannot be read: {error}", "reload to compile it anew"
        ) from error
    found, header, parts = _checked(path, memory, digest)
    place = Place(path, found)
    return RuleSetData(
        name,
        StoredPrefixes(place, parts[0].cast("I"), parts[1].cast("Q"), parts[2].cast("Q")),
        StoredNames(place, memory, parts[3], header),
        About(*header["about"]),
        tuple(Skipped(*each) for each in header["skipped"]),
        header["format"],
    )


def _checked(
    path: Path, memory: memoryview, known: bytes | None
) -> tuple[bytes, _Header, list[memoryview]]:
    damaged = GatewayError(f"{path} is not a compiled rule set, or a damaged one")
    if len(memory) < _HEAD.size:
        raise damaged
    mark, digest, length = _HEAD.unpack_from(memory)
    body = memory[_HEAD.size :]
    if mark != _MARK or length > len(body):
        raise damaged
    if known is None:
        known = hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
    if digest != known:
        raise damaged
    header: _Header = json.loads(bytes(body[:length]))
    if (header["version"], header["byteorder"]) != (FORMAT_VERSION, sys.byteorder):
        raise GatewayError(f"{path} was compiled by another version or machine")
    parts, at = [], length
    for size in header["parts"]:
        parts.append(body[at : at + size])
        at += size + -size % 8
    return digest, header, parts
