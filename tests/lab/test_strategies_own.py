"""Loop strategies for own traffic and programs beside us: the matrix of ``gateway lab loops``."""

from __future__ import annotations

from test_strategies import tried

from gateway.lab.lab import Lab
from gateway.lab.own_traffic import Programs, own_traffic


def test_the_mark_where_own_traffic_is_diverted(lab: Lab, backend: str) -> None:
    """Unmarked, one connection becomes as many as there are descriptors; marked, it is one."""
    ways = {"mark, tproxy", "mark, redirect"}
    assert tried(list(own_traffic(lab, backend))) == {"without": ways, "diverted": ways}


def test_a_proxy_program_on_this_machine(lab: Lab, backend: str) -> None:
    """As somebody else than was said, it loops until the breaker ends that; as itself, never."""
    programs = Programs(lab, backend)
    techniques = {"uid", "cgroup"} if programs.has_groups else {"uid"}
    assert tried(list(programs.run())) == {"without": techniques, "diverted": techniques}
