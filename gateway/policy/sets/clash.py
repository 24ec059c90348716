"""Clash's rule providers in YAML: ``payload:`` with domains, prefixes or classical rules.

The behaviours need not be told apart: each entry shows what it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import yaml

from gateway.errors import GatewayError
from gateway.policy.sets.entries import Entries
from gateway.policy.sets.lines import Progress, text_line

try:
    from yaml import CSafeLoader as _Loader
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

#: A line of a list of scalars that can be read without YAML: nothing in it has a meaning there.
_ITEM = re.compile(r"\s*-\s+(?:'([^'\\]*)'|\"([^\"\\]*)\"|([^'\"\s&*!|>%@`\[{#?:-][^#:]*?))\s*")
_BLANK = re.compile(r"\s*(#.*)?")
_PERIOD = 1 << 16


def read_clash(text: str, entries: Entries, progress: Progress) -> None:
    """Read a provider. Raises ``GatewayError`` where it is none."""
    lines = text.count("\n") + 1
    # A list of plain lines is read as such: YAML would take longer than all the rest.
    plain = plain_items(text, "payload")
    found: Iterable[tuple[str | None, int]]
    found = _yaml_items(text, "payload") if plain is None else plain
    for number, (item, line) in enumerate(found, start=1):
        if item is None:
            entries.skip("not text", line, "")
        else:
            text_line(entries, item.strip(), line)
        if not number % _PERIOD:
            progress(number / lines)


def plain_items(text: str, key: str) -> list[tuple[str, int]] | None:
    """Text and line of each item of the list below ``key``, where nothing else is in the file.

    None where YAML must read it.
    """
    lines = text.split("\n")
    at = 0
    while at < len(lines) and _BLANK.fullmatch(lines[at]):
        at += 1
    if at == len(lines) or lines[at].rstrip() != f"{key}:":
        return None
    found: list[tuple[str, int]] = []
    for number, line in enumerate(lines[at + 1 :], start=at + 2):
        matched = _ITEM.fullmatch(line)
        if matched is None:
            if not _BLANK.fullmatch(line):
                return None
            continue
        found.append((matched[matched.lastindex or 0], number))
    return found


def _yaml_items(text: str, key: str) -> Iterator[tuple[str | None, int]]:
    """The same of any YAML; None in place of what is no text.

    By events, so that neither depth nor aliases of aliases cost anything. Raises ``GatewayError``
    where it is no YAML, or has no such list.
    """
    depth, at_key, inside, seen = 0, False, False, False
    try:
        for event in yaml.parse(text, _Loader):
            mark = event.start_mark
            line = 0 if mark is None else mark.line + 1
            if isinstance(event, yaml.CollectionStartEvent):
                if inside and depth == 2:
                    yield None, line
                inside = inside or (
                    at_key and depth == 1 and isinstance(event, yaml.SequenceStartEvent)
                )
                seen = seen or inside
                at_key, depth = False, depth + 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
                inside = inside and depth >= 2
            elif isinstance(event, yaml.ScalarEvent):
                if inside and depth == 2:
                    yield event.value, line
                at_key = depth == 1 and event.value == key
            elif isinstance(event, yaml.AliasEvent) and inside and depth == 2:
                yield None, line
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise GatewayError(
            f"not YAML: {reason}", "check brackets, quotes and indentation"
        ) from error
    if not seen:
        raise GatewayError(f"has no list `{key}:`", "is it another format? `format:` names it")
