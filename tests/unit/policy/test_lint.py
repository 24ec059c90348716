"""Warnings: each kind once, and a rule that is said never to be reached never decides."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.findings import show_path
from gateway.config.schema import Config
from gateway.policy.compile import compile_policy
from gateway.policy.engine import Policy
from gateway.policy.lint import _rules_in_vain, lint
from tests.unit.policy.test_engine import FLOWS, MOMENTS, policies

SOCKS = {"type": "socks5", "server": "203.0.113.5"}
LAN = {"interfaces": ["eth1"], "subnets": {"kids": ["192.168.20.0/24", "fd00:20::/64"]}}


def warnings(*rules: dict[str, Any], **more: Any) -> dict[str, str]:
    config = Config.model_validate(
        {
            "lan": LAN,
            "outbounds": {"home": SOCKS},
            "rules": [*rules, {"subnet": "kids", "port": 65535, "to": "home"}, {"to": "direct"}],
            **more,
        }
    )
    found = lint(config, compile_policy(config, {}))
    # The rule that uses the names here may be in the shadow of any other.
    used = f"rules[{len(rules)}]"
    return {show_path(each.path): each.message for each in found if show_path(each.path) != used}


def rule(**keys: Any) -> dict[str, Any]:
    return {"to": "home", **keys}


@pytest.mark.parametrize(
    ("above", "below"),
    [
        ({"port": "1-100"}, {"port": 50}),
        ({"port": 53, "protocol": ["tcp", "udp"]}, {"port": 53, "protocol": "udp", "dscp": 0}),
        ({"source": "192.168.0.0/16"}, {"subnet": "kids", "ip_version": 4, "source": "0.0.0.0/0"}),
        ({"domain": ["+.a.example"]}, {"domain": ["a.example", "+.b.a.example"], "port": 443}),
        ({"domain": "keyword:ads"}, {"domain": "keyword:ads"}),
        ({"time": "08:00-18:00"}, {"time": "09:00-10:00", "weekday": "mon-fri"}),
        ({"not": {"port": 443}}, {"not": {"port": 443}, "protocol": "tcp"}),
        ({"device": ["02:00:5e:00:53:01", "02:00:5e:00:53:02"]}, {"device": "02:00:5e:00:53:02"}),
    ],
)
def test_a_rule_in_the_shadow_of_another(above: dict[str, Any], below: dict[str, Any]) -> None:
    found = warnings(rule(**above), rule(**below))
    assert found == {"rules[1]": "never reached: rules[0] takes every flow that it would match"}, (
        found
    )
    assert above == below or warnings(rule(**below), rule(**above)) == {}


@pytest.mark.parametrize(
    ("above", "below"),
    [
        ({"port": 50}, {"protocol": "icmp"}),
        ({"domain": "a.example", "sniff": False}, {"domain": "a.example"}),
        ({"not": {"domain": "a.example"}, "sniff": False}, {"not": {"domain": "a.example"}}),
        ({"domain": "keyword:a"}, {"domain": "keyword:ads"}),
        ({"source": "192.168.20.0/24"}, {"subnet": "kids"}),
        ({"any": [{"port": 1}]}, {"port": 1}),
    ],
)
def test_what_is_not_sure_is_not_said(above: dict[str, Any], below: dict[str, Any]) -> None:
    assert warnings(rule(**above), rule(**below)) == {}


def test_lists_are_looked_at_by_themselves() -> None:
    page = [rule(port=1), rule(port=1), {"to": "direct"}]
    found = warnings({"subnet": "kids", "goto": "page"}, lists={"page": page})
    assert list(found) == ["lists.page[1]"]


def test_names_that_nothing_uses() -> None:
    found = warnings(
        lan={
            **LAN,
            "subnets": {**LAN["subnets"], "spare": "10.0.0.0/8"},
            "devices": {"tv": "02:00:5e:00:53:01"},
        },
        outbounds={"home": SOCKS, "other": SOCKS},
        rule_sets={"mine": {"type": "inline", "entries": "10.0.0.0/8"}},
        lists={"page": [{"to": "direct"}]},
    )
    assert sorted(found) == [
        "lan.devices.tv", "lan.subnets.spare", "lists.page", "outbounds.other", "rule_sets.mine",
    ]  # fmt: skip
    assert set(found.values()) == {"no rule names it"}


def test_names_that_are_used_elsewhere_than_in_rules() -> None:
    group = {"type": "fallback", "members": ["home", "member"]}
    found = warnings(
        rule(port=1, to="auto"),
        lan={
            **LAN,
            "subnets": {**LAN["subnets"], "tv": "10.0.0.0/24", "lab": "10.0.1.0/24"},
            "devices": {"phone": "02:00:5e:00:53:01"},
        },
        inbound={"on_failure_of": {"tv": "open"}},
        outbounds={"home": SOCKS, "lists": SOCKS, "member": SOCKS, "auto": group},
        rule_sets={"ads": {"type": "url", "url": "https://a.example/", "via": "lists"}},
        assertions=[{"from": "lab", "device": "phone", "to": "a.example:1", "expect": "direct"}],
    )
    assert found == {"rule_sets.ads": "no rule names it"}


def test_a_rule_without_addresses() -> None:
    found = warnings(rule(source="10.0.0.0/8", subnet="kids"))
    assert found["rules[0]"].startswith("never matches")


@given(policies(), st.lists(st.tuples(FLOWS, MOMENTS), min_size=1, max_size=20))
def test_a_rule_that_is_never_reached_never_decides(policy: Policy, asked: list[Any]) -> None:
    vain = {each.path[-1] for each in _rules_in_vain(("rules",), policy.rules)}
    for facts, now in asked:
        (*_, last) = policy.trace(facts, now)
        if last.rule in policy.rules:
            assert last.rule.index not in vain
