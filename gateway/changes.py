"""What differs between two configurations, in sentences for the one who reloads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel

from gateway.config.schema import Config

#: What the entries of a mapping are called, by its key.
_ENTRIES: Final = {
    "outbounds": "outbound",
    "rule_sets": "rule set",
    "lists": "list",
    "subnets": "subnet",
    "devices": "device",
    "on_failure_of": "on_failure_of",
}


def changes(old: Config, new: Config) -> tuple[str, ...]:
    """One sentence for each thing that changed; none where both say the same."""
    return tuple(_changes("", old, new))


def _changes(section: str, old: BaseModel, new: BaseModel) -> Iterator[str]:
    """In the order of the schema, so that no key can be forgotten."""
    for key in type(new).model_fields:
        before, after = getattr(old, key), getattr(new, key)
        if before == after:
            continue
        if isinstance(after, BaseModel):
            yield from _changes(f"{section}{key}.", before, after)
        elif isinstance(after, Mapping):
            yield from _entries(_ENTRIES[key], before, after)
        elif key in ("rules", "assertions"):
            yield f"{key} changed: {len(before)} before, {len(after)} now"
        else:
            yield f"{section}{key}: {_shown(before)} before, {_shown(after)} now"


def _entries(what: str, old: Mapping[str, object], new: Mapping[str, object]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            yield f"{what} {name} removed"
        elif name not in old:
            yield f"{what} {name} added"
        elif old[name] != new[name]:
            yield f"{what} {name} changed"


def _shown(value: Any) -> str:
    """As it is written, as far as that can be told."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "nothing" if value in (None, "") else str(value)
