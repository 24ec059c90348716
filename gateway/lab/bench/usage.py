"""What a process and its children use, as the kernel counts it (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


def processes(pid: int) -> Iterator[int]:
    """``pid`` and all that descend from it and live."""
    yield pid
    for children in _PROC.glob(f"{pid}/task/*/children"):
        with suppress(OSError):
            for child in children.read_text().split():
                yield from processes(int(child))


def cpu_s(pid: int) -> float:
    """Seconds of CPU, user and system, in ticks of 10 ms; network work done inline is in it.

    Raises ``OSError`` when the process has ended.
    """
    return _sum(pid, _ticks) / _TICKS_PER_S


def memory_bytes(pid: int) -> int:
    """Proportional set size: memory shared with others counts by its share.

    Raises ``OSError`` when the process has ended.
    """
    return _sum(pid, partial(_rollup_bytes, field="Pss"))


def anonymous_bytes(pid: int) -> int:
    """Heaps and stacks: what others share, or cease to, does not change it.

    Raises ``OSError`` when the process has ended.
    """
    return _sum(pid, partial(_rollup_bytes, field="Pss_Anon"))


def resident_bytes(pid: int) -> int:
    """Resident set size: what is shared between the processes counts in each.

    Raises ``OSError`` when the process has ended.
    """
    return _sum(pid, partial(_rollup_bytes, field="Rss"))


def descriptors(pid: int) -> int:
    """How many descriptors are open. Raises ``OSError`` when the process has ended."""
    return _sum(pid, lambda each: len(list((_PROC / str(each) / "fd").iterdir())))


def _sum(pid: int, measured: Callable[[int], int]) -> int:
    """Of all these processes; one below ``pid`` that has just ended uses nothing."""
    total = 0
    for each in processes(pid):
        try:
            total += measured(each)
        except OSError:
            if each == pid:
                raise
    return total


def _ticks(pid: int) -> int:
    """Fields 14 and 15, utime and stime, found behind the name, which may hold anything."""
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _rollup_bytes(pid: int, field: Literal["Pss", "Pss_Anon", "Rss"]) -> int:
    for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    return 0  # a process that is ending has no memory any more
