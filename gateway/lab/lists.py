"""Lists as large as those that people use, made of nothing: names and prefixes, one a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_ENDINGS = ("com", "net", "org", "de", "io", "co.uk", "com.br", "info")


def names(count: int, seed: int = 1) -> Iterator[str]:
    """Names, every second one with all below it; the same for the same seed."""
    chance = Random(seed)  # noqa: S311
    for number in range(count):
        word = "".join(chance.choices(_LETTERS, k=chance.randint(4, 14)))
        if number % 3 == 0:
            word = "".join(chance.choices(_LETTERS, k=4)) + "." + word
        yield ("+." if number % 2 else "") + word + "." + chance.choice(_ENDINGS)


def prefixes(count: int, seed: int = 1) -> Iterator[str]:
    """Prefixes, every fifth one IPv6; the same for the same seed. Some overlap, as in life."""
    chance = Random(seed)  # noqa: S311
    for number in range(count):
        if number % 5 == 0:
            groups = f"{chance.randrange(1 << 16):x}:{chance.randrange(1 << 16):x}"
            yield f"2{chance.randrange(1 << 12):03x}:{groups}::/{32 + number % 17}"
        else:
            length = chance.randint(16, 24)
            network = chance.randrange(1 << 24) << 8 & -(1 << (32 - length))
            yield ".".join(map(str, network.to_bytes(4, "big"))) + f"/{length}"


def write(path: Path, entries: Iterator[str]) -> None:
    """One entry a line."""
    with path.open("w", encoding="ascii") as file:
        file.writelines(f"{entry}\n" for entry in entries)
