"""Kernel state of ours, in a few words: what a run that was killed leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gateway.kernel.applier import Applier
from gateway.plan.model import Backend
from gateway.plan.snapshot import Snapshot


def read_leftovers(run_dir: Path) -> tuple[str, ...]:
    """What of ours is installed, whichever backend put it there.

    Raises ``CapabilityError`` without the privilege to look.
    """
    applier = Applier(run_dir)
    phrases = [phrase for backend in Backend for phrase in describe(applier.snapshot(backend))]
    return tuple(dict.fromkeys(phrases))


def describe(snapshot: Snapshot) -> Iterator[str]:
    """A phrase for each kind of thing that is there; nothing for an empty machine."""
    for table in sorted({key.table for key in snapshot.chains}):
        chains = sum(key.table == table for key in snapshot.chains)
        yield f"{chains} firewall chains in table {table}"
    for count, what in (
        (len(snapshot.sets), "address sets"),
        (len(snapshot.ip_rules), "ip rules"),
        (len(snapshot.routes), "routes"),
    ):
        if count:
            yield f"{count} {what}"
    for key, before in snapshot.restore.items():
        yield f"{key} changed from {before}"
