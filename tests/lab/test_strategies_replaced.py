"""A default route that another program has taken away: the matrix of ``gateway lab loops``."""

from __future__ import annotations

from test_strategies import tried

from gateway.lab.lab import Lab
from gateway.lab.replaced import interface_group, replaced_default


def test_a_default_route_that_is_replaced(lab: Lab) -> None:
    """With a route of its own the server is reached, until it moves; without one, never."""
    everything = {"mark", "device", "followed", "host_route"}
    assert tried(list(replaced_default(lab))) == {
        "captured": everything,
        "server moved": {"followed"},
        "its program died": everything - {"followed"},
        "default back": everything,
    }


def test_a_rule_that_drops_a_route_by_its_group(lab: Lab) -> None:
    """Alone it keeps no mark out of the TUN; with a table behind it, and an end, it does."""
    ways = {"suppress_ifgroup"}
    assert tried(list(interface_group(lab))) == dict.fromkeys(
        ["without", "alone", "and a table", "default lost", "lost, unreachable"], ways
    )
