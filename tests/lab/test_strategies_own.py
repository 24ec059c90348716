"""Loop strategies for own traffic and programs beside us: the matrix of ``gateway lab loops``."""

from __future__ import annotations

from test_strategies import tried

from gateway.lab.lab import Lab
from gateway.lab.own_traffic import own_datagrams, own_traffic
from gateway.lab.programs import Programs, server_here


def test_the_mark_where_own_traffic_is_diverted(lab: Lab, backend: str) -> None:
    """Unmarked, one connection becomes as many as there are descriptors; marked, it is one."""
    ways = {"mark, tproxy", "mark, redirect"}
    assert tried(list(own_traffic(lab, backend))) == {"without": ways, "diverted": ways}


def test_the_mark_of_datagrams(lab: Lab) -> None:
    """Unmarked, one becomes as many flows as there may be; marked, it is one."""
    ways = {"mark, tproxy, UDP"}
    assert tried(list(own_datagrams(lab))) == {"without": ways, "diverted": ways}


def test_a_proxy_program_on_this_machine(lab: Lab, backend: str) -> None:
    """As somebody else than was said, it loops until the breaker ends that; as itself, never."""
    programs = Programs(lab, backend)
    techniques = {"uid", "uid, TUN"} | ({"cgroup"} if programs.has_groups else set())
    assert tried(list(programs.run())) == {
        "without": techniques,
        "as another": techniques - {"cgroup"},
        "diverted": techniques,
        "default lost": {"uid, TUN"},
        "default back": {"uid, TUN"},
        **({"made again": {"cgroup"}} if programs.has_groups else {}),
    }


def test_a_server_on_loopback(lab: Lab) -> None:
    """By an uplink it is not reached: `auto` does not try, and `device` is refused."""
    assert tried(list(server_here(lab))) == {
        "bound, no gateway": {"device"},
        "on loopback": {"auto", "device"},
    }
