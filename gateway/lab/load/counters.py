"""Numbers that one process counts and another reads while it counts: eight bytes each in a file."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Final

BYTES = 8

#: What a client counts: bytes received; connections that have been proved to be open to the far
#: end; exchanges finished; exchanges and proofs that failed; proofs.
CLIENT: Final = ("received", "established", "exchanges", "failed", "proved")
RECEIVED, ESTABLISHED, EXCHANGES, FAILED, PROVED = range(5)


class Counters:
    """``names`` in a memory-mapped file, in that order; the writer counts ``values`` up.

    Reading is one load of an aligned word: no lock, no system call.
    """

    def __init__(self, path: Path, names: tuple[str, ...], *, create: bool = False) -> None:
        """Map ``path``; ``create`` makes it, with zeros. Raises ``OSError``."""
        if create:
            path.write_bytes(bytes(BYTES * len(names)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), BYTES * len(names))
        self.values = memoryview(self._map).cast("Q")
        self._names = names

    def read(self) -> Mapping[str, int]:
        """All of them, by name."""
        return dict(zip(self._names, self.values, strict=True))
