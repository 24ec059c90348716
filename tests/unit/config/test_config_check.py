"""Checks across keys: one table, each row one mistake and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.config.check import check
from gateway.config.explain import _PATTERNS
from gateway.config.findings import show_path
from gateway.config.schema import Config

SOCKS = {"type": "socks5", "server": "203.0.113.5"}
LAN = {
    "interfaces": ["eth1"],
    "subnets": {"kids": ["192.168.20.0/24", "fd00:20::/64"], "four": ["10.4.0.0/16"]},
    "devices": {"tv": "02:00:5e:00:53:01"},
}
DEFAULT = {"to": "direct"}


def findings(**changes: Any) -> list[tuple[str, str, str]]:
    data = {"lan": LAN, "outbounds": {"home": SOCKS}, "rules": [DEFAULT]} | changes
    found = check(Config.model_validate(data), frozenset({"private"}))
    return [(show_path(each.path), each.message, each.cure) for each in found]


def rules(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"rules": [*rules, DEFAULT]}


def outbound(**keys: Any) -> dict[str, Any]:
    return {"outbounds": {"out": keys}}


ALL_TUN = {"tcp": "tun", "udp": "tun", "icmp": "tun"}


def tun(inbound: dict[str, Any] = ALL_TUN, **keys: Any) -> dict[str, Any]:
    return {"inbound": inbound, "tun": keys}


LEGAL: list[dict[str, Any]] = [
    {},
    {"lan": {"this_machine": True}},
    {**tun(capture="default-route"), "lan": {}},
    tun(capture="prefixes", prefixes=["192.168.20.0/24", "198.51.100.0/24"]),
    tun(capture="fake-ip"),
    tun(
        {**ALL_TUN, "icmp": "pretend", "on_failure": "open"},
        capture="default-route",
        strategy="split_default",
    ),
    {"lan": {"this_machine": True}, **outbound(**SOCKS)},
    rules({"subnet": "kids", "destination": ["private", "10.0.0.0/8"], "to": "home"}),
    rules({"subnet": "kids", "source": "192.168.20.5", "to": "reject"}),
    rules({"source": "10.0.0.0/8", "destination": ["::/0", "private"], "to": "home"}),
    rules({"source": ["10.0.0.0/8", "fd00::/8"], "destination": "::/0", "to": "home"}),
    rules({"protocol": ["tcp", "udp"], "port": "80-90", "interface": "eth1", "to": "home"}),
    rules({"rule_set": "private", "to": "home"}),
    outbound(**SOCKS, username="u", password="p" * 255),
    outbound(**{**SOCKS, "server": "127.0.0.1"}),
    outbound(**{**SOCKS, "server": "socks.a-b.example."}),
    outbound(**{**SOCKS, "server": "2001:db8::5"}),
    outbound(type="direct", source="192.0.2.1"),
    outbound(type="direct", preserve_source=True),
    outbound(type="direct", route="device", interface="wg0"),
    {"outbounds": {"direct": {"type": "direct", "interface": "wg0"}}},
    {"marks": {"base": 0x1000_0000}},
    rules({"device": ["tv", "02:00:5e:00:53:02", "dhcp:phone"], "to": "home"}),
    rules({"not": {"port": 443}, "any": [{"protocol": "icmp"}, {"dscp": "ef"}], "to": "home"}),
    rules({"mark": "0x10/0xff", "port": 2, "to": "direct"}, {"port": 1, "to": "reject-drop"}),
    {**rules({"goto": "a"}), "lists": {"a": [{"goto": "b"}], "b": [DEFAULT]}},
    {**rules({"country": "DE", "asn": 1, "to": "home"}), "geo": {"country": "c", "asn": "a"}},
    {"lan": {"this_machine": True}, **rules({"gid": 0, "port": 1, "to": "reject"})},
    {"lan": {"this_machine": True}, **rules({"uid": 0, "cgroup": "a.slice", "to": "home"})},
]


@pytest.mark.parametrize("changes", LEGAL, ids=str)
def test_legal(changes: dict[str, Any]) -> None:
    assert findings(**changes) == []


def fetched(**settings: str) -> dict[str, Any]:
    return {"rule_sets": {"far": {"type": "url", "url": "http://lists.example/", **settings}}}


ILLEGAL: list[tuple[dict[str, Any], str, str, str]] = [
    (
        tun(prefixes=["198.51.100.0/24"]),
        "tun.prefixes", "nothing with capture: lan", "capture: prefixes",
    ),
    (tun(capture="prefixes"), "tun.capture", "no prefix", "`prefixes:`"),
    (
        tun(capture="prefixes", prefixes=["::/0"]),
        "tun.prefixes[0]", "everything", "default-route",
    ),
    (
        tun(capture="prefixes", prefixes=["224.0.0.0/8"]),
        "tun.prefixes[0]", "can be routed", "remove",
    ),
    (
        tun(strategy="split_default", inbound={**ALL_TUN, "on_failure": "open"}),
        "tun.strategy", "nothing with capture: lan", "default-route",
    ),
    (
        tun(capture="default-route", strategy="split_default"),
        "tun.strategy", "refuse our own sockets", "on_failure: open",
    ),
    (
        {
            **tun(
                {**ALL_TUN, "on_failure": "open"},
                capture="default-route",
                strategy="split_default",
            ),
            **outbound(**{**SOCKS, "server": "127.0.0.1"}, uid=13),
        },
        "outbounds.out.uid", "takes both halves", "strategy: suppress",
    ),
    (
        tun({**ALL_TUN, "udp": "tproxy"}, capture="default-route"),
        "inbound.udp", "taken by routes", "`udp: tun`",
    ),
    (
        tun({**ALL_TUN, "classify": "nfqueue"}, capture="default-route"),
        "inbound.classify", "no packet queue", "listener",
    ),
    (
        tun({**ALL_TUN, "on_failure_of": {"kids": "open"}}, capture="fake-ip"),
        "inbound.on_failure_of", "who sends", "one `on_failure`",
    ),
    (
        tun(capture="fake-ip", fake_ip=["10.0.0.0/8", "fd01::/64"]),
        "tun.fake_ip[0]", "the subnet four (10.4.0.0/16)", "nobody uses",
    ),
    (
        tun(capture="fake-ip", fake_ip="203.0.113.0/24"),
        "tun.fake_ip[0]", "the server of outbound home", "nobody uses",
    ),
    (
        tun(capture="fake-ip", fake_ip=["198.18.0.0/16", "198.19.0.0/16"]),
        "tun.fake_ip", "two pools", "one for each",
    ),
    (
        {**tun(capture="default-route"), **outbound(**{**SOCKS, "server": "127.0.0.1"})},
        "outbounds.out.server", "`tun.capture: default-route`", "`uid:`",
    ),
    (
        {
            **tun(capture="default-route"),
            **outbound(**{**SOCKS, "server": "127.0.0.1"}, cgroup="a/b"),
        },
        "outbounds.out.cgroup", "users alone", "`uid:`",
    ),
    (
        {"inbound": {"tcp": "tun"}, "tun": {"name": "eth1"}},
        "tun.name", "an interface of the LAN", "a name that nobody has",
    ),
    (
        {
            "inbound": {"tcp": "tun"},
            "lan": {"interfaces": ["eth1"], "subnets": {"a": ["172.16.0.0/12"]}},
        },
        "tun.ipv4", "172.29.88.0/30 overlaps the subnet a", "nobody else uses",
    ),
    ({"lan": {}}, "lan.interfaces", "nobody's traffic", "this_machine: true"),
    ({"lan": {"interfaces": ["e"], "subnets": {"a": []}}}, "lan.subnets.a", "empty", "CIDRs"),
    (rules({"source": [], "to": "home"}), "rules[0].source", "empty list", "leave the key out"),
    (
        {"lan": {"interfaces": "e", "subnets": {"a": "10.0.0.0/8", "b": ["::/8", "10.1.0.0/16"]}}},
        "lan.subnets.b[1]", "b (10.1.0.0/16) overlaps a (10.0.0.0/8)", "one subnet only",
    ),
    (
        {"inbound": {"on_failure_of": {"kids": "open"}, "classify": "nfqueue"}},
        "inbound.on_failure_of", "one answer for all", "classify: listener",
    ),
    (
        {"inbound": {"on_failure_of": {"kid": "open"}}},
        "inbound.on_failure_of.kid", "unknown subnet", "did you mean kids?",
    ),
    ({"outbounds": {"direct": SOCKS}}, "outbounds.direct", "kept for", "another name"),
    ({"outbounds": {"reject": {"type": "direct"}}}, "outbounds.reject", "kept for", "another"),
    (outbound(type="direct", route="device"), "outbounds.out.route", "device", "interface"),
    (outbound(**SOCKS, route="device"), "outbounds.out.route", "device", "interface"),
    (outbound(type="direct", route="source"), "outbounds.out.route", "source without", "interface"),
    (outbound(type="direct", route="netns"), "outbounds.out.route", "netns without", "netns"),
    (outbound(**SOCKS, route="uid"), "outbounds.out.route", "uid without", "add `uid:`"),
    (outbound(**SOCKS, route="cgroup"), "outbounds.out.route", "cgroup without", "add `cgroup:`"),
    (outbound(**SOCKS, route="mark", uid=7), "outbounds.out.uid", "route: mark", "route: uid"),
    (outbound(**SOCKS, uid=7, cgroup="a"), "outbounds.out.cgroup", "beside uid", "one of the two"),
    (outbound(**SOCKS, netns="n", interface="e"), "outbounds.out.interface", "another", "remove"),
    (
        outbound(type="direct", source="192.0.2.1", preserve_source=True),
        "outbounds.out.source", "preserved", "remove",
    ),
    (outbound(**SOCKS, username="u"), "outbounds.out.username", "without a password", "!env"),
    (outbound(**SOCKS, password="p"), "outbounds.out.password", "without a user", "username"),
    (outbound(**SOCKS, username="u", password=""), "outbounds.out.password", "1 to 255", ""),
    (outbound(**SOCKS, username="u", password="é" * 128), "outbounds.out.password", "255", ""),
    (outbound(**SOCKS, username="é" * 128, password="p"), "outbounds.out.username", "255", ""),
    (
        outbound(**{**SOCKS, "server": "203.0.113.5:1080"}),
        "outbounds.out.server", "neither an address", "port",
    ),
    (outbound(**{**SOCKS, "server": "10.0.0.300"}), "outbounds.out.server", "neither", "port"),
    (outbound(**{**SOCKS, "server": "a b"}), "outbounds.out.server", "neither", "port"),
    ({"marks": {"base": 0x300_0000}}, "marks.base", "power of two", "0x2000000"),
    (rules({"destination": "x", "to": "hom"}), "rules[0].to", "unknown outbound",
     "did you mean home? outbounds: direct, home, reject"),
    (rules({"subnet": ["kids", "Kid"], "to": "home"}), "rules[0].subnet[1]", "unknown subnet",
     "did you mean kids?"),
    (rules({"destination": ["::/0", "privat"], "to": "home"}), "rules[0].destination[1]",
     "unknown rule set", "did you mean private?"),
    (rules({"rule_set": "cn", "to": "home"}), "rules[0].rule_set[0]", "unknown rule set",
     "rule sets: private"),
    (rules({"interface": "eth0", "to": "home"}), "rules[0].interface[0]", "nothing arrives",
     "did you mean eth1?"),
    (rules({"protocol": "icmp", "port": 1, "to": "home"}), "rules[0].port", "no ports", "own"),
    (rules({"protocol": ["tcp", "icmp"], "source_port": 1, "to": "home"}), "rules[0].source_port",
     "no ports", "own"),
    (rules({"subnet": "kids", "source": "10.0.0.0/8", "to": "home"}), "rules[0].source",
     "never matches", "two rules"),
    (rules({"source": "10.0.0.0/8", "destination": "::/0", "to": "home"}), "rules[0].destination",
     "no address family", "IPv6 with IPv6"),
    (rules({"subnet": "four", "destination": "::/0", "to": "home"}), "rules[0].destination",
     "no address family", "IPv6 with IPv6"),
    ({"rules": [{"port": 1, "to": "home"}]}, "rules[0]", "last rule", "{to: direct}"),
    (rules({"port": 1}), "rules[0].to", "is missing", "an outbound's name"),
    (rules({"to": "home", "goto": "a"}), "rules[0].goto", "beside `to`", "one of them"),
    (rules({"goto": "kid"}), "rules[0].goto", "unknown list", "there are no lists"),
    (rules({"device": "TV", "to": "home"}), "rules[0].device[0]", "unknown device", "mean tv?"),
    (rules({"not": {"subnet": "kid"}, "to": "home"}), "rules[0].not[0].subnet[0]",
     "unknown subnet", "mean kids?"),
    (rules({"any": [{"port": 1}, {}], "to": "home"}), "rules[0].any[1]", "asks nothing", "a key"),
    (rules({"all": [], "to": "home"}), "rules[0].all", "empty list", "leave the key out"),
    (rules({"country": "DE", "to": "home"}), "rules[0].country", "no database", "geo: {country"),
    (rules({"not": {"asn": 1}, "to": "home"}), "rules[0].not[0].asn", "no database", "geo: {asn"),
    ({"lan": {**LAN, "devices": {"x": {}}}}, "lan.devices.x", "nothing tells", "hostname"),
    (rules({"uid": 0, "to": "home"}), "rules[0].uid", "not diverted", "this_machine: true"),
    ({"lan": {**LAN, "this_machine": True}, **rules({"uid": 0, "interface": "eth1", "to": "home"})},
     "rules[0].uid", "has no owner", "two rules"),
    ({"lan": {**LAN, "this_machine": True}, **rules({"not": {"gid": 0}, "to": "home"})},
     "rules[0].not[0].gid", "reject or send direct", "use `uid`"),
    ({"lan": {**LAN, "this_machine": True},
      **rules({"gid": 0, "domain": "a.example", "to": "direct"})},
     "rules[0].gid", "cannot ask for `domain`", "use `uid`"),
    (rules({"mark": 1, "to": "home"}), "rules[0].mark", "only flows sent direct", "to: direct"),
    (rules({"mark": "0x1000010", "to": "direct", "port": 1}), "rules[0].mark", "our own bits",
     "other bits"),
    ({**rules({"goto": "a"}), "lists": {"a": [{"goto": "b"}], "b": [{"goto": "a"}]}},
     "lists.a[0].goto", "leads back to a", "one direction"),
    ({"lists": {"a": []}}, "lists.a", "empty list", "leave it out"),
    ({"lists": {"a": [DEFAULT, {"port": 1, "to": "home"}]}}, "lists.a[1]",
     "never reached: lists.a[0]", "above lists.a[0]"),
    (fetched(via="hoem"), "rule_sets.far.via", "unknown outbound", "home"),
    (fetched(via="reject"), "rule_sets.far.via", "through a refusal", "way out"),
    (rules(DEFAULT), "rules[1]", "never reached: rules[0]", "above rules[0]"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "path", "message", "cure"), ILLEGAL, ids=str)
def test_illegal(changes: dict[str, Any], path: str, message: str, cure: str) -> None:
    found = [each for each in findings(**changes) if each[0] == path]
    assert len(found) == 1, findings(**changes)
    assert message in found[0][1]
    assert cure in found[0][2]


@pytest.mark.parametrize("server", ["127.0.0.1", "::1", "localhost", "LOCALHOST.", "127.9.9.9"])
def test_own_traffic_and_a_proxy_on_this_machine_would_loop(server: str) -> None:
    lan = {"interfaces": ["eth1"], "this_machine": True}
    (found,) = findings(lan=lan, **outbound(**{**SOCKS, "server": server}))
    assert found[0] == "outbounds.out.server"
    assert "diverted to itself" in found[1]
    assert "namespace" in found[2]


def _patterns(part: Any) -> set[str]:
    if isinstance(part, list):
        return set().union(*map(_patterns, part))
    if not isinstance(part, dict):
        return set()
    own = {part["pattern"]} if isinstance(part.get("pattern"), str) else set()
    return own.union(*map(_patterns, part.values()), part.get("patternProperties", ()))


def test_every_pattern_of_the_schema_has_a_sentence_for_who_misses_it() -> None:
    assert _patterns(Config.model_json_schema()) <= _PATTERNS.keys()
