"""Loop strategies where somebody has the default route: the matrix of ``gateway lab loops``."""

from __future__ import annotations

from gateway.lab.cells import FAMILIES, Cell
from gateway.lab.halves import BESIDES_MARK, SECOND, STRATEGIES, Halves
from gateway.lab.lab import Lab
from gateway.lab.ladder import ladder
from gateway.lab.trials import Outcome

#: What is tried of each technique, so that nothing is left out unseen.
SITUATIONS = {
    "captured": set(STRATEGIES),
    "another router": set(BESIDES_MARK),
    "address renewed": set(BESIDES_MARK),
    "default lost": set(BESIDES_MARK),
    "default back": set(BESIDES_MARK),
    "link down": set(BESIDES_MARK),
    "link up": set(BESIDES_MARK),
    "another uplink": set(BESIDES_MARK),
    "and the first lost": set(BESIDES_MARK),
    "unplugged": set(SECOND),
    "plugged in again": set(BESIDES_MARK),
    "namespace gone": {"netns"},
    "namespace back": set(BESIDES_MARK),
    "server moved": {"host_route"},
}
ALONE = {"source address alone"}


def tried(cells: list[Cell]) -> dict[str, set[str]]:
    """The techniques of each situation, tried with both families and found as they should be."""
    assert [cell for cell in cells if not cell.ok] == []
    found: dict[str, set[str]] = {}
    for cell in cells:
        found.setdefault(cell.situation, set()).add(cell.technique)
    assert len(cells) == len(FAMILIES) * sum(map(len, found.values()))
    return found


def looping(cells: list[Cell]) -> set[tuple[str, str]]:
    """Where a loop was witnessed, as it was to be."""
    return {(cell.technique, cell.situation) for cell in cells if cell.seen is Outcome.LOOP}


def test_a_vpn_that_takes_both_halves(lab: Lab) -> None:
    """Whoever has only a mark goes astray; the others do not, whatever happens to the uplink."""
    halves = Halves(lab, ours=False)
    cells = list(halves.run())
    assert tried(cells) == {
        **SITUATIONS,
        "captured": SITUATIONS["captured"] | ALONE,
        "TUN gone": set(STRATEGIES),
    }
    assert looping(cells) == {("mark", "captured"), ("source address alone", "captured")}
    # What the watcher has put right is said, as what it did.
    repaired = "\n".join(line for line in halves.gateway.log if " repaired " in line)
    for done in (
        "198.51.100.20/32 via 203.0.113.254 dev wan0",
        "2001:db8:51::20/128 via 2001:db8:113::fe dev wan0",
        "from 203.0.113.77/32",
        "from 2001:db8:113::77/128",
        "via 100.64.7.1 dev wan1",
        "via 2001:db8:7::1 dev wan1",
    ):
        assert done in repaired


def test_our_own_tun_that_takes_both_halves(lab: Lab) -> None:
    """The same, and what would loop is refused; killed, it leaves everything as it was before."""
    cells = list(Halves(lab, ours=True).run())
    assert tried(cells) == {
        **SITUATIONS,
        "without": {"mark"},
        "TUN removed": set(BESIDES_MARK),
        "TUN gone": ALONE,
    }
    assert looping(cells) == {("mark", "without")}


def test_the_ladder(lab: Lab) -> None:
    """The mark leads past the TUN; without it, or without its last rung, into it."""
    cells = list(ladder(lab))
    flows = {f"mark + ladder{kind}" for kind in ("", ", UDP", ", ping")}
    assert tried(cells) == {
        "without": flows | {"mark + ladder, probe"},
        "captured": flows | {"mark + ladder, probe"},
        "default lost": flows,
        "lost, no unreachable": flows,
        "default back": flows,
    }
