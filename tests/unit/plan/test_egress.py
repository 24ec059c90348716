from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface
from typing import Any

import pytest

from gateway.config.schema import Config
from gateway.plan.addresses import Family
from gateway.plan.build import build_plan
from gateway.plan.egress import ANYWHERE, Egress
from gateway.plan.host import DefaultRoute, Feature, HostFacts, Interface
from gateway.plan.matches import InControlGroup, OwnedBy
from gateway.plan.model import Backend, IpRule
from gateway.plan.render_ip import route_line, rule_line
from gateway.plan.render_nft import render_nft
from gateway.plan.strategies import egresses
from gateway.policy.compile import compile_policy


def link(name: str, *addresses: str, **more: Any) -> Interface:
    known = tuple(ip_interface(address) for address in addresses)
    lasting = tuple(a.ip for a in known if not a.is_link_local and not a.is_loopback)
    return Interface(name, 1, True, known, lasting, **more)


LO = link("lo", "127.0.0.1/8", "::1/128")
LAN = link("lan0", "10.0.1.1/24", "fd00:1::1/64")
WAN = link("wan0", "203.0.113.7/24", "2001:db8:113::7/64", "fe80::7/64")
LTE = link("lte0", "100.64.0.9/30")
WG = link("wg0", "10.9.0.2/32", has_arp=False)
BY_WAN = DefaultRoute("ipv4", "wan0", "203.0.113.1", metric=100)
BY_WAN6 = DefaultRoute("ipv6", "wan0", "fe80::1", from_ra=True, metric=1024)
BY_LTE = DefaultRoute("ipv4", "lte0", "100.64.0.10", metric=200)
BY_TUNNEL = DefaultRoute("ipv4", "tun9", None, metric=0)
HOST = HostFacts(
    (LO, LAN, WAN, LTE, WG),
    (BY_TUNNEL, BY_LTE, BY_WAN, BY_WAN6),
    {"ipv6": Feature(True, "")},
    users={"proxy": 13},
    cgroups={"a/b": 77},
)
FAR, FAR6 = "198.51.100.5", "2001:db8:51::5"


def config(*, takes_own: bool = True, **outbound: Any) -> Config:
    settings = {"type": "socks5", "server": FAR, **outbound}
    if settings["type"] == "direct":
        del settings["server"]
    return Config.model_validate(
        {
            "lan": {"interfaces": ["lan0"], "this_machine": takes_own},
            "outbounds": {"out": settings},
            "rules": [{"to": "out"}],
        }
    )


def ways(host: HostFacts = HOST, **outbound: Any) -> list[Egress]:
    found = egresses(config(**outbound), host, {})
    assert [way.destination for way in found[:2]] == list(ANYWHERE)  # the unwritten `direct`
    return list(found[2:])


def lines(way: Egress) -> list[str]:
    return [
        rule_line(e, "add") if isinstance(e, IpRule) else route_line(e, "add") for e in way.entries
    ]


@pytest.mark.parametrize(
    ("outbound", "strategy"),
    [
        ({}, "mark"),
        ({"interface": "wan0"}, "device"),
        ({"interface": "wan0", "server": "127.0.0.1", "takes_own": False}, "mark"),
        ({"interface": "wan0", "server": "10.0.1.1", "takes_own": False}, "mark"),
        ({"interface": "wan0", "route": "mark"}, "mark"),
        ({"source": "203.0.113.7"}, "mark"),
        ({"netns": "phys"}, "netns"),
        ({"uid": 13, "server": "127.0.0.1"}, "uid"),
        ({"cgroup": "a/b", "server": "::1"}, "cgroup"),
        ({"type": "direct", "interface": "wan0"}, "device"),
    ],
    ids=str,
)
def test_auto(outbound: dict[str, Any], strategy: str) -> None:
    (way, *_) = ways(**outbound)
    assert (way.strategy, way.problem) == (strategy, "")
    assert way.how.split()[0] == strategy
    assert way.device == ("wan0" if strategy == "device" else None)


def test_a_server_by_name_has_the_ways_that_it_resolves_to() -> None:
    named = config(server="proxy.example")
    assert len(egresses(named, HOST, {})) == 2
    found = egresses(named, HOST, {"out": (FAR, FAR6)})[2:]
    assert [way.destination for way in found] == [FAR, FAR6]


def test_source_has_a_table_of_its_uplink_alone() -> None:
    (way,) = ways(route="source", interface="wan0")
    assert (way.source, way.uplink, way.via) == ("203.0.113.7", "wan0", "203.0.113.1")
    assert lines(way) == [
        "ip -4 route add unicast 203.0.113.0/24 dev wan0 table 8810 proto 0x67",
        "ip -4 route add unicast 0.0.0.0/0 via 203.0.113.1 dev wan0 onlink table 8810 proto 0x67",
        (
            "ip -4 rule add priority 8810 from 203.0.113.7/32 fwmark 0x02000000/0x0f000000"
            " protocol 0x67 lookup 8810"
        ),
        (
            "ip -4 rule add priority 8811 from 203.0.113.7/32 fwmark 0x02000000/0x0f000000"
            " protocol 0x67 unreachable"
        ),
    ]
    (six,) = ways(route="source", interface="wan0", server=FAR6)
    assert (six.source, six.via) == ("2001:db8:113::7", "fe80::1")
    assert (
        lines(six)[0] == "ip -6 route add unicast 2001:db8:113::/64 dev wan0 table 8810 proto 0x67"
    )


def test_source_follows_the_address() -> None:
    renewed = replace(HOST, interfaces=(LO, LAN, link("wan0", "203.0.113.99/24")))
    (way,) = ways(renewed, route="source", interface="wan0")
    assert way.source == "203.0.113.99"
    (gone,) = ways(renewed, route="source", source="203.0.113.7")
    assert "203.0.113.7 is not an address of this machine now" in gone.problem
    assert gone.entries == ()
    (moved,) = ways(renewed, route="source", interface="lan0", source="203.0.113.99")
    assert "lan0 does not have 203.0.113.99" in moved.problem
    bare = replace(HOST, interfaces=(LO, LAN, replace(WAN, lasting=())))
    (none,) = ways(bare, route="source", interface="wan0")
    assert "wan0 does not have an ipv4 address to send from now" in none.problem


def test_source_without_an_uplink_is_closed() -> None:
    """Sockets that are bound already must not fall into what follows."""
    (way,) = ways(replace(HOST, default_routes=(BY_LTE,)), route="source", interface="wan0")
    assert "no ipv4 default route by wan0 now" in way.problem
    assert lines(way) == [
        (
            "ip -4 rule add priority 8811 from 203.0.113.7/32 fwmark 0x02000000/0x0f000000"
            " protocol 0x67 unreachable"
        )
    ]


def test_source_of_both_families_and_several_uplinks() -> None:
    found = ways(type="direct", route="source", interface="wan0")
    assert [way.source for way in found] == ["203.0.113.7", "2001:db8:113::7"]
    two = Config.model_validate(
        {
            "lan": {"interfaces": ["lan0"]},
            "outbounds": {
                "b": {"type": "direct", "route": "source", "interface": "wan0"},
                "a": {"type": "direct", "route": "source", "source": "100.64.0.9"},
            },
            "rules": [{"to": "b"}],
        }
    )
    tables = {
        way.uplink: entry.table
        for way in egresses(two, HOST, {})
        for entry in way.entries
        if entry.table
    }
    assert tables == {"lte0": 8810, "wan0": 8811}


def test_a_device_without_arp_needs_no_gateway() -> None:
    (way,) = ways(route="source", interface="wg0")
    assert (way.uplink, way.via, way.problem) == ("wg0", None, "")
    assert lines(way)[0] == "ip -4 route add unicast 0.0.0.0/0 dev wg0 table 8810 proto 0x67"


def test_host_route_follows_the_best_default_that_has_a_gateway() -> None:
    (way,) = ways(route="host_route")
    closed = "ip -4 route add unreachable 198.51.100.5/32 table 254 proto 0x67 metric 8888"
    assert lines(way) == [
        (
            "ip -4 route add unicast 198.51.100.5/32 via 203.0.113.1 dev wan0 onlink table 254"
            " proto 0x67 metric 88"
        ),
        closed,
    ]
    (other,) = ways(route="host_route", interface="lte0")
    assert (other.uplink, other.via) == ("lte0", "100.64.0.10")
    without = replace(HOST, default_routes=(BY_WAN6,))
    (lost,) = ways(without, route="host_route")
    assert lines(lost) == [closed], "a lost default route fails closed"
    assert "no ipv4 default route" in lost.problem
    (tunnel,) = ways(replace(HOST, default_routes=(BY_TUNNEL,)), route="host_route")
    assert (tunnel.uplink, tunnel.via) == ("tun9", None)


def test_host_route_to_what_is_near() -> None:
    (neighbour,) = ways(route="host_route", server="203.0.113.5")
    assert (neighbour.uplink, neighbour.via) == ("wan0", None)
    for here in ("127.0.0.1", "::1", "203.0.113.7"):
        (own,) = ways(route="host_route", server=here, takes_own=False)
        assert (own.entries, own.problem) == ((), "")


@pytest.mark.parametrize("server", ["10.0.1.1", "fd00:1::1", "203.0.113.7"])
def test_a_program_on_this_machine_that_nobody_names(server: str) -> None:
    """By whatever address of this machine: what it sends would come to us, and to it again."""
    (way,) = ways(server=server)
    assert f"the proxy on {server} is on this machine" in way.problem
    assert "`uid:`" in way.cure
    for named in ({"uid": 13}, {"cgroup": "a/b"}, {"netns": "phys"}, {"takes_own": False}):
        assert ways(server=server, **named)[0].problem == ""


@pytest.mark.parametrize("backend", Backend)
def test_a_program_on_this_machine_is_not_diverted(backend: Backend) -> None:
    for outbound, match in (
        ({"uid": "proxy"}, OwnedBy("uid", (13,))),
        ({"uid": 4242}, OwnedBy("uid", (4242,))),
        ({"cgroup": "a/b"}, InControlGroup("a/b", 77)),
    ):
        made = config(server="127.0.0.1", **outbound)
        plan = build_plan(made, compile_policy(made, {}), HOST, backend)
        (output,) = (chain for chain in plan.chains if chain.name == "output")
        names = [rule.name for rule in output.rules]
        assert names.index("bypass") < names.index("program-0") < names.index("decide")
        assert output.rules[names.index("program-0")].matches == (match,)


def test_the_programs_in_the_words_of_nft() -> None:
    made = config(server="127.0.0.1", cgroup="a/b")
    text = render_nft(build_plan(made, compile_policy(made, {}), HOST, Backend.NFTABLES))
    assert 'socket cgroupv2 level 2 "a/b" accept' in text
    made = config(server="127.0.0.1", uid="proxy")
    text = render_nft(build_plan(made, compile_policy(made, {}), HOST, Backend.NFTABLES))
    assert "meta skuid 13 accept" in text


@pytest.mark.parametrize(
    ("outbound", "problem"),
    [
        ({"uid": "nobody-here", "server": "127.0.0.1"}, "no user nobody-here"),
        ({"cgroup": "gone", "server": "127.0.0.1"}, "no control group gone"),
        ({"uid": 13}, f"{FAR} is not on this machine"),
    ],
)
def test_a_program_that_is_not_there(outbound: dict[str, Any], problem: str) -> None:
    (way,) = ways(**outbound)
    assert problem in way.problem
    assert way.cure
    assert (way.uid, way.cgroup) == (None, None)


def test_entries_are_in_the_plan_and_before_the_rules_of_others() -> None:
    made = config(route="source", interface="wan0")
    host = replace(HOST, first_rule=5210)
    plan = build_plan(made, compile_policy(made, {}), host, Backend.NFTABLES)
    (_, _, way) = egresses(made, host, {})
    assert set(way.entries) <= {*plan.ip_rules, *plan.routes}
    assert max(rule.priority for rule in plan.ip_rules) == 5209
    assert {rule.family for rule in plan.ip_rules if rule.source} == {Family.V4}


# --- device ----------------------------------------------------------------------------------


def test_a_device_has_a_route_for_what_has_none_behind_all_others() -> None:
    (way,) = ways(interface="wan0")
    assert shown(way) == [
        "ip -4 route add unicast 0.0.0.0/0 dev wan0 table 8850 proto 0x67",
        (
            "ip -4 rule add priority 32800 oif wan0 fwmark 0x02000000/0x0f000000 protocol 0x67"
            " lookup 8850 realms 103"
        ),
    ]
    assert ways(interface="wan0", server=FAR6)[0].entries == (), "IPv6 assumes nothing"
    assert ways(interface="wg0")[0].entries == (), "nobody is asked for by ARP there"
    down = replace(HOST, interfaces=(LO, LAN, replace(WAN, up=False)))
    assert ways(down, interface="wan0")[0].entries == (), "a link that is down takes no route"


def shown(way: Egress) -> list[str]:
    return [
        rule_line(entry, "add") if isinstance(entry, IpRule) else route_line(entry, "add")
        for entry in way.entries
    ]


@pytest.mark.parametrize("backend", Backend)
def test_what_was_found_there_is_refused(backend: Backend) -> None:
    made = config(interface="wan0")
    plan = build_plan(made, compile_policy(made, {}), HOST, backend)
    (chain,) = (chain for chain in plan.chains if chain.name == "filter_unrouted")
    assert [rule.family for rule in chain.rules] == [Family.V4]
    assert "rt classid 103" in render_nft(plan)
    bare = build_plan(config(), compile_policy(config(), {}), HOST, backend)
    assert "classid" not in render_nft(bare)
