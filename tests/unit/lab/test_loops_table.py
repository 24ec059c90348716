from __future__ import annotations

import io

import pytest
from rich.console import Console

from gateway.errors import GatewayError
from gateway.lab.cells import Cell
from gateway.lab.loops import PARTS, Found, chosen
from gateway.lab.loops_table import line, listing, table
from gateway.lab.trials import Outcome

ARRIVES = Cell("mark", "captured", 4, Outcome.DIRECT, Outcome.DIRECT, "203.0.113.2", "203.0.113.2")
ANOTHER = Cell("mark", "captured", 6, Outcome.DIRECT, Outcome.DIRECT, "::7", "2001:db8:113::2")
LOOPS = Cell("mark", "without", 4, Outcome.LOOP, Outcome.LOOP, "an accept storm")
SILENT = Cell("mark", "without", 6, Outcome.LOOP, Outcome.SILENT)
UNSAID = Cell("uid", "lost", 4, Outcome.REFUSED, Outcome.REFUSED, "reset", "", "no route to")


@pytest.mark.parametrize(
    ("cell", "ok"),
    [(ARRIVES, True), (ANOTHER, False), (LOOPS, True), (SILENT, False), (UNSAID, False)],
)
def test_a_cell_is_as_it_should_be_with_what_was_seen_and_said(cell: Cell, ok: bool) -> None:
    assert cell.ok is ok
    assert cell.as_json()["ok"] is ok
    assert ("FAIL" in line(cell)) is not ok


def test_a_wrong_cell_says_what_was_expected() -> None:
    assert "IPv6: arrives (::7); expected: arrives (2001:db8:113::2)" in line(ANOTHER)
    assert "IPv6: no answer; expected: loops" in line(SILENT)
    assert "(reset); expected: refused (no route to)" in line(UNSAID)
    assert "expected" not in line(LOOPS)


def shown(found: Found) -> list[list[str]]:
    """Rows and columns of the table, as text."""
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as capture:
        console.print(table(found))
    return [row.split("  ") for row in capture.get().splitlines() if row.strip()]


def test_a_row_for_each_situation_and_a_column_for_each_technique() -> None:
    cells = [ARRIVES, ANOTHER, LOOPS, SILENT, UNSAID]
    head, _, captured, without, lost = (
        [field.strip() for field in row if field.strip()] for row in shown(Found("halves", cells))
    )
    assert head == ["mark", "uid"]
    assert captured == ["captured", "arrives (!)"]
    assert without == ["without", "loops / no answer (!)"]
    assert lost == ["lost", "refused (!)"]


def test_what_is_wrong_counts_and_so_does_what_was_not_finished() -> None:
    assert Found("halves", [ARRIVES, LOOPS]).wrong == 0
    assert Found("halves", [ARRIVES, ANOTHER], "the lab is gone").wrong == 2


def test_every_part_is_listed_with_what_it_shows() -> None:
    assert [row.split()[0] for row in listing().splitlines()] == list(PARTS)


def test_parts_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GatewayError, match="no part halfs") as caught:
        chosen(["halfs"])
    assert "halves" in str(caught.value.hint)
    monkeypatch.setattr("gateway.lab.loops.require_root", lambda: None)
    monkeypatch.setattr("shutil.which", lambda tool: None if tool == "microsocks" else tool)
    with pytest.raises(GatewayError, match="needs microsocks") as caught:
        chosen(["halves"])
    assert caught.value.hint == "apt install microsocks"
    monkeypatch.setattr("shutil.which", lambda tool: tool)
    assert chosen(["ladder", "halves", "ladder"]) == ["ladder", "halves"]
    assert chosen([]) == list(PARTS)
