"""Loop strategies where somebody has the default route: the matrix of ``gateway lab loops``."""

from __future__ import annotations

from gateway.lab.capture import Outcome
from gateway.lab.cells import Cell
from gateway.lab.lab import Lab
from gateway.lab.topology import FAMILIES
from gateway.lab.uplinks import STRATEGIES, SplitDefault, ladder

BESIDES_MARK = set(STRATEGIES) - {"mark"}
UPLINKS = BESIDES_MARK - {"netns"}

#: What is tried of each technique, so that nothing is left out unseen.
SITUATIONS = {
    "captured": set(STRATEGIES),
    "another router": BESIDES_MARK,
    "address renewed": BESIDES_MARK,
    "default lost": BESIDES_MARK,
    "default back": BESIDES_MARK,
    "link down": UPLINKS,
    "link up": BESIDES_MARK,
    "server moved": {"host_route"},
    "TUN gone": set(STRATEGIES),
}


def tried(cells: list[Cell]) -> dict[str, set[str]]:
    """The techniques of each situation, tried with both families and found as they should be."""
    assert [cell for cell in cells if not cell.ok] == []
    found: dict[str, set[str]] = {}
    for cell in cells:
        found.setdefault(cell.situation, set()).add(cell.technique)
    assert len(cells) == len(FAMILIES) * sum(map(len, found.values()))
    return found


def test_a_vpn_that_takes_both_halves(lab: Lab) -> None:
    """Whoever has only a mark goes astray; the others do not, whatever happens to the uplink."""
    cells = list(SplitDefault(lab).run())
    assert tried(cells) == SITUATIONS
    assert {cell.technique for cell in cells if cell.seen is Outcome.LOOP} == {"mark"}


def test_the_ladder(lab: Lab) -> None:
    """The mark leads past the TUN; without it, or without its last rung, into it."""
    cells = list(ladder(lab))
    assert list(tried(cells)) == [
        "without",
        "captured",
        "default lost",
        "lost, no unreachable",
        "default back",
    ]
