"""What is wrong with a configuration, before it is known on which line."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

#: Keys and list indices from the top of the file to a value.
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem at a path.

    ``at`` says what to point to and to show: the key or its value. ``secret``: the
    value is not shown.
    """

    path: Path
    message: str
    cure: str = ""
    at: Literal["value", "key"] = "value"
    secret: bool = False


def show_path(path: Path) -> str:
    """``rules[2].to``; the empty path is the whole file."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.lstrip(".") or "the file"


def did_you_mean(name: str, known: Collection[str], what: str) -> str:
    """The cure for an unknown name: the nearest known one, and all of them.

    ``what`` says what is listed, in the plural: ``outbounds here``.
    """
    if not known:
        return f"there are no {what}"
    by_folded = {candidate.casefold(): candidate for candidate in known}
    near = get_close_matches(name.casefold(), by_folded, n=1)
    question = f"did you mean {by_folded[near[0]]}? " if near else ""
    return f"{question}{what}: {', '.join(sorted(known))}"
