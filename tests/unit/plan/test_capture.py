"""The ladder around a TUN, and the routes into it, as ip(8) would write them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

from gateway.marks import Marks
from gateway.plan.addresses import EVERYTHING, Family
from gateway.plan.capture import Capture, capture_routes, capture_rules, neighbour_routes
from gateway.plan.render_ip import route_line, rule_line

BYPASS = "fwmark 0x02000000/0x0f000000 protocol 0x67"


def rules(capture: Capture, down: int = 0) -> list[str]:
    return [rule_line(rule, "add") for rule in capture_rules(capture, [Family.V4], Marks(), down)]


def routes(capture: Capture, family: Family = Family.V4) -> list[str]:
    return [
        route_line(route, "add").removeprefix("ip -4 route add ").removeprefix("ip -6 route add ")
        for route in capture_routes(capture, [family])
    ]


EVERYBODY = Capture("tun0", tuple(EVERYTHING.values()), uids=(4242,))


def test_the_ladder_ends_in_unreachable_before_it_leads_into_the_tun() -> None:
    assert [line.removeprefix("ip -4 rule add priority ") for line in rules(EVERYBODY, 800)] == [
        "8020 uidrange 4242-4242 protocol 0x67 lookup 254",
        f"8021 {BYPASS} lookup 254",
        f"8022 {BYPASS} lookup 253",
        f"8023 {BYPASS} unreachable",
        "8023 uidrange 4242-4242 protocol 0x67 unreachable",
        "8030 protocol 0x67 lookup 254 suppress_prefixlength 0",
        "8031 protocol 0x67 lookup 8803",
    ]


def test_everything_but_what_goes_to_neighbours() -> None:
    assert routes(EVERYBODY) == [
        "unicast 0.0.0.0/0 dev tun0 table 8803 proto 0x67",
        "unreachable 0.0.0.0/0 table 8803 proto 0x67 metric 8888",
    ]
    thrown = [route_line(route, "add") for route in neighbour_routes(EVERYBODY, Family)]
    assert thrown == [
        "ip -4 route add throw 224.0.0.0/4 table 8803 proto 0x67",
        "ip -4 route add throw 255.255.255.255/32 table 8803 proto 0x67",
        "ip -6 route add throw ff00::/8 table 8803 proto 0x67",
    ]
    assert neighbour_routes(replace(EVERYBODY, by="split_default"), Family) == ()


def test_halves_need_no_ladder() -> None:
    halves = Capture("tun0", tuple(EVERYTHING.values()), "split_default", closed=False)
    assert rules(halves) == []
    assert routes(halves, Family.V6) == [
        "unicast ::/1 dev tun0 table 254 proto 0x67",
        "unicast 8000::/1 dev tun0 table 254 proto 0x67",
    ]


def test_some_prefixes_of_each_family() -> None:
    some = Capture("tun0", (ip_network("198.18.0.0/15"), ip_network("fd12::/64")))
    assert routes(some) == [
        "unicast 198.18.0.0/15 dev tun0 table 8803 proto 0x67",
        "unreachable 198.18.0.0/15 table 8803 proto 0x67 metric 8888",
    ]
    assert len(routes(some, Family.V6)) == 2
