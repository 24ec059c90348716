from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest

from gateway.errors import ApplyError
from gateway.kernel import routes
from gateway.marks import Marks
from gateway.plan.addresses import Family
from gateway.plan.model import IpRule, Route

from .namespace import Namespace

MARKS = Marks()
RULES = [
    rule
    for family in Family
    for rule in (
        IpRule(8800, family, "goto", goto=8809, mark=MARKS.divert, iif="lo"),
        IpRule(8801, family, "lookup", table=8801, mark=MARKS.divert),
        IpRule(8803, family, "unreachable", mark=MARKS.tun),
        IpRule(8804, family, "lookup", table=100, iif="lan0"),
        IpRule(8809, family, "nop"),
        IpRule(8820, family, "lookup", table=254, uid=4242),
        IpRule(8830, family, "lookup", table=254, suppress_prefixlen=0),
    )
] + [
    IpRule(
        8810, Family.V4, "lookup", table=8810, mark=MARKS.bypass, source=ip_network("203.0.113.2")
    ),
    IpRule(8811, Family.V6, "unreachable", source=ip_network("2001:db8:113::/64")),
]
ROUTES = [
    Route(Family.V4, "local", ip_network("0.0.0.0/0"), "lo", 8801),
    Route(Family.V6, "local", ip_network("::/0"), "lo", 8801),
    Route(Family.V4, "unicast", ip_network("198.51.100.0/24"), "wan0", 8802),
    Route(Family.V6, "unicast", ip_network("2001:db8:51::/48"), "wan0", 8802),
    Route(Family.V4, "unreachable", ip_network("0.0.0.0/0"), "lo", 8802),
    Route(Family.V6, "unreachable", ip_network("::/0"), "lo", 8802),
    # A gateway outside of the link's networks; two routes to one place, told apart by metric.
    Route(Family.V4, "unicast", ip_network("0.0.0.0/0"), "wan0", 8810, "10.99.0.1"),
    Route(Family.V6, "unicast", ip_network("::/0"), "wan0", 8810, "fe80::1"),
    Route(Family.V4, "unicast", ip_network("198.51.100.5"), "wan0", 254, "203.0.113.1", 88),
    Route(Family.V4, "unreachable", ip_network("198.51.100.5"), "lo", 254, metric=8888),
    Route(Family.V6, "unicast", ip_network("2001:db8:51::5"), "wan0", 254, "2001:db8:113::1", 88),
    Route(Family.V6, "unreachable", ip_network("2001:db8:51::5"), "lo", 254, metric=8888),
]


def test_what_is_added_is_read_back_and_removed(ns: Namespace) -> None:
    before = ns.state()
    ns.call(routes.add, [*ROUTES, *RULES])
    assert ns.call(routes.read) == routes.Installed(frozenset(RULES), frozenset(ROUTES))
    # iproute2 sees the same.
    assert "8800:\tfrom all fwmark 0x1000000/0xf000000 iif lo goto 8809 proto 103" in ns.run(
        "ip", "rule"
    )
    assert "local default dev lo proto 103" in ns.run("ip", "-6", "route", "show", "table", "8801")

    ns.call(routes.remove, [*RULES, *ROUTES])
    ns.call(routes.remove, [*RULES, *ROUTES])
    assert ns.state() == before


@pytest.mark.parametrize("at", [-4, -2])
def test_a_route_is_replaced_in_one_step(ns: Namespace, at: int) -> None:
    """And the unreachable one behind it takes over by itself where the link goes down."""
    first, behind = ROUTES[at : at + 2] if at + 2 else ROUTES[at:]
    via = "203.0.113.9" if first.family is Family.V4 else "2001:db8:113::9"
    second = replace(first, via=via)
    assert first.place == second.place != behind.place
    ns.call(routes.add, [first, behind])
    ns.call(routes.replace, second)
    assert ns.call(routes.read).routes == {second, behind}
    ns.run("ip", "link", "set", "wan0", "down")
    assert ns.call(routes.read).routes == {behind}


def test_what_others_added_is_not_ours(ns: Namespace) -> None:
    ns.sh(
        """
        ip rule add pref 8801 fwmark 0x1000000/0xf000000 lookup 8801
        ip route add local default dev lo table 8801
        """
    )
    before = ns.state()
    assert ns.call(routes.read) == routes.Installed(frozenset(), frozenset())
    ours = IpRule(8801, Family.V4, "lookup", table=8801, mark=MARKS.tun)
    ns.call(routes.add, [ours])
    ns.call(routes.remove, [ours])
    assert ns.state() == before


def test_errors_name_the_command_and_the_cure(ns: Namespace) -> None:
    missing = Route(Family.V4, "unicast", ip_network("192.0.2.0/24"), "nolink", 8802)
    with pytest.raises(ApplyError, match=r"192\.0\.2\.0/24 dev nolink .*no interface") as caught:
        ns.call(routes.add, [missing])
    assert "ip link" in caught.value.hint

    ns.run("ip", "link", "set", "wan0", "down")
    with pytest.raises(ApplyError, match=r"198\.51\.100\.0/24 dev wan0 .*Network is down"):
        ns.call(routes.add, [ROUTES[2]])


def test_a_rule_that_the_kernel_took_otherwise_is_an_error(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyroute2 ignores a keyword that it does not know: here it is given one."""
    message = routes._rule_message

    def misspelt(rule: IpRule) -> dict[str, object]:
        made = message(rule)
        made["fw_mark"] = made.pop("fwmark")
        return made

    monkeypatch.setattr(routes, "_rule_message", misspelt)
    with pytest.raises(ApplyError, match="the kernel took it otherwise: ip -4 rule add"):
        ns.call(routes.add, [IpRule(8801, Family.V4, "lookup", table=8801, mark=MARKS.divert)])
