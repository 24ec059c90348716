"""A default route that another program has taken away: the matrix of ``gateway lab loops``."""

from __future__ import annotations

from test_strategies import tried

from gateway.lab.lab import Lab
from gateway.lab.metrics import outbid
from gateway.lab.replaced import replaced_default


def test_a_default_route_that_is_replaced(lab: Lab) -> None:
    """With a route of its own the server is reached, until it moves; without one, never."""
    everything = {"mark", "device", "followed", "host_route"}
    assert tried(list(replaced_default(lab))) == {
        "captured": everything,
        "server moved": {"followed"},
        "its program died": everything - {"followed"},
        "default back": everything,
    }


def test_a_default_route_that_is_outbid(lab: Lab) -> None:
    """A mark alone follows the better route; a rule that drops it needs a table, and an end."""
    by_group = {"suppress_ifgroup"}
    assert tried(list(outbid(lab))) == {
        "outbid": {"mark", "device", "host_route"} | by_group,
        "outbid in turn": {"mark", "device", "host_route"},
        "the rule alone": by_group,
        "and a table": by_group,
        "default lost": by_group,
        "lost, unreachable": by_group,
    }
