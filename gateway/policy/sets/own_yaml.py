"""Our own rule sets in YAML: ``entries:``, and what the list says about itself.

They are written by hand, so every entry must be right: each problem is told with its line.
"""

from __future__ import annotations

from pydantic import Field

from gateway.config.load import parse_as
from gateway.config.values import EntryList, Model
from gateway.policy.sets.clash import plain_items
from gateway.policy.sets.entries import Entries
from gateway.policy.sets.lines import Progress

#: Above this (characters) a list was not written by hand: it is read as lists of others are.
_BY_HAND = 4 << 20
_PERIOD = 1 << 16


class _RuleSetFile(Model):
    """A rule set's file in YAML."""

    name: str = Field(default="", description="the set's name, for people")
    description: str = Field(default="", description="what is in it, and what for")
    source: str = Field(default="", description="where the entries come from")
    licence: str = Field(default="", description="under which terms they may be passed on")
    entries: EntryList = Field(description="CIDRs, addresses and names")


def read_own_yaml(
    text: str, file: str, entries: Entries, progress: Progress
) -> tuple[str, str, str]:
    """Read a set; its description, source and licence.

    Raises ``ConfigError`` with all problems.
    """
    if len(text) > _BY_HAND:
        found = plain_items(text, "entries")
        if found is not None:
            for number, (item, line) in enumerate(found):
                entries.either(item, line)
                if not number % _PERIOD:
                    progress(number / len(found))
            return "", "", ""
    read, _ = parse_as(_RuleSetFile, text, file)
    entries.update(read.entries)
    return read.description, read.source, read.licence
