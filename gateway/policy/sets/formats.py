"""Which format a list has, and reading it: one door for all formats."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from gateway.errors import ConfigError, GatewayError
from gateway.policy.sets.entries import Entries
from gateway.policy.sets.lines import LINE_READERS, Progress, kind_of, read_lines

#: Changes whenever a list may be read differently than before.
READERS_VERSION: Final = 1

_MMDB_MARK: Final = b"\xab\xcd\xefMaxMind.com"
#: The mark stands within so many bytes of the end (MaxMind DB file format specification 2.0).
_MMDB_TAIL: Final = 128 << 10
_ZSTD_MARK: Final = b"\x28\xb5\x2f\xfd"
_GZIP_MARK: Final = b"\x1f\x8b"
#: So much of a text tells its format.
_LOOKED_AT: Final = 64 << 10
_OWN_YAML: Final = re.compile(r"^entries:", re.MULTILINE)
_CLASH_YAML: Final = re.compile(r"^[ \t]*payload:", re.MULTILINE)


class ListSource(NamedTuple):
    """A list in a file. ``named``: its maker's name for it, where ``path`` has another."""

    path: Path
    format: str = "auto"
    select: str = ""
    named: str = ""

    @property
    def ending(self) -> str:
        """The ending of its name, with the dot, in lower case."""
        return Path(self.named or self.path.name).suffix.lower()


class Contents(NamedTuple):
    """What is in a list; ``about``: its description, source and licence, where it has them."""

    format: str
    entries: Entries
    about: tuple[str, str, str] = ("", "", "")


def read_list(source: ListSource, progress: Progress = lambda _done: None) -> Contents:
    """Read a list.

    Raises ``ConfigError`` for a bad list of our own, else ``GatewayError`` whose message
    begins with the path; also where nothing in it can be made use of.
    """
    path = source.path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise GatewayError(
            f"{path} cannot be read: {error.strerror}", "check the path, and its permissions"
        ) from error
    contents = _read(source, data, progress)
    if not contents.entries:
        skipped = contents.entries.skipped
        why = "; ".join(map(str, skipped)) or "it has no entries"
        raise GatewayError(
            f"{path}: nothing in it can be used, read as {contents.format}: {why}",
            "check the file; `format:` names another format",
        )
    return contents


def _read(source: ListSource, data: bytes, progress: Progress) -> Contents:
    try:
        return _by_format(source, data, progress)
    except ConfigError:
        raise  # its problems name the file themselves
    except GatewayError as error:
        raise GatewayError(f"{source.path}: {error}", error.hint) from error


def _by_format(source: ListSource, data: bytes, progress: Progress) -> Contents:
    """Libraries are loaded by the formats that need them: most lists are lines of text."""
    entries = Entries()
    about = ("", "", "")
    form = _binary_form(source, data)
    if form == "mmdb":
        from gateway.policy.sets.mmdb import read_mmdb

        read_mmdb(source.path, source.select, entries, progress)
    elif form:
        from gateway.policy.sets.v2ray import read_geoip, read_geosite

        (read_geoip if form == "geoip" else read_geosite)(data, source.select, entries)
    else:
        text = _text(data)
        form = source.format if source.format != "auto" else _text_form(source, text)
        if form == "yaml":
            from gateway.policy.sets.own_yaml import read_own_yaml

            about = read_own_yaml(text, str(source.path), entries, progress)
        elif form == "clash":
            from gateway.policy.sets.clash import read_clash

            read_clash(text, entries, progress)
        else:
            read_lines(text, LINE_READERS[form], entries, progress)
    return Contents(form, entries, about)


def _binary_form(source: ListSource, data: bytes) -> str:
    """``mmdb``, ``geosite`` or ``geoip``; empty for all that is text."""
    if source.format in ("mmdb", "geosite", "geoip"):
        return source.format
    if source.format != "auto":
        return ""
    if source.ending == ".mmdb" or _MMDB_MARK in data[-_MMDB_TAIL:]:
        return "mmdb"
    if source.ending == ".dat":
        # The outer shape is the same: who selects knows, else the name tells.
        kind = source.select.partition(":")[0]
        if kind in ("geosite", "geoip"):
            return kind
        return "geoip" if "ip" in (source.named or source.path.name).lower() else "geosite"
    return ""


def _text_form(source: ListSource, text: str) -> str:
    if _OWN_YAML.search(text[:_LOOKED_AT]) and source.ending in (".yaml", ".yml"):
        return "yaml"
    if _CLASH_YAML.search(text[:_LOOKED_AT]):
        return "clash"
    return "yaml" if source.ending in (".yaml", ".yml") else kind_of(text)


def _text(data: bytes) -> str:
    if data.startswith(_ZSTD_MARK):
        raise GatewayError(
            "is compressed (zstd, as Clash's .mrs is)", "take the list's YAML or text form"
        )
    if data.startswith(_GZIP_MARK):
        raise GatewayError("is compressed (gzip)", "unpack it")
    if b"\0" in data[:_LOOKED_AT]:
        raise GatewayError("is not text", "`format:` names a binary format: geosite, geoip, mmdb")
    return data.decode("utf-8-sig", errors="replace")  # a comment may be in another encoding
