"""The lab's large lists are lists, and the same each time."""

from __future__ import annotations

from pathlib import Path

from gateway.lab import lists
from gateway.policy.sets.formats import ListSource, read_list


def test_large_lists_are_read_whole(tmp_path: Path) -> None:
    for make in (lists.names, lists.prefixes):
        path = tmp_path / "list.txt"
        lists.write(path, make(2000))
        contents = read_list(ListSource(path))
        assert len(contents.entries) == 2000
        assert contents.entries.skipped == ()
        assert list(make(50)) == path.read_text().split()[:50]
