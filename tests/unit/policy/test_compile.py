"""Rules as written become rules with every name resolved."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from gateway.config.schema import Config
from gateway.decision import Decision
from gateway.flow import Endpoint, FlowFacts, Protocol
from gateway.policy.compile import compile_policy
from gateway.policy.engine import Policy
from gateway.policy.rule import CompiledRule
from gateway.policy.rulesets import RuleSetData

SETS = {
    "ten": RuleSetData.of_networks("ten", (ip_network("10.0.0.0/8"), ip_network("fd10::/16"))),
    "half": RuleSetData.of_networks("half", (ip_network("10.0.0.0/9"),)),
    "empty": RuleSetData.of_networks("empty", ()),
}
SUBNETS = {"kids": ["192.168.20.0/24", "fd00:20::/64"], "more": ["192.168.21.0/24"]}


def compiled(*rules: dict[str, Any]) -> Policy:
    config = Config.model_validate(
        {"lan": {"interfaces": "eth1", "subnets": SUBNETS}, "rules": [*rules, {"to": "direct"}]}
    )
    return compile_policy(config, SETS)


def first(**keys: Any) -> CompiledRule:
    return compiled({"to": "home", **keys}).rules[0]


def texts(networks: tuple[object, ...] | None) -> list[str] | None:
    return None if networks is None else list(map(str, networks))


@pytest.mark.parametrize(
    ("keys", "source", "destination"),
    [
        ({}, None, None),
        ({"subnet": "kids"}, ["192.168.20.0/24", "fd00:20::/64"], None),
        ({"subnet": ["more", "kids"]}, ["192.168.20.0/23", "fd00:20::/64"], None),
        ({"subnet": "kids", "source": "192.168.0.0/16"}, ["192.168.20.0/24"], None),
        ({"source": ["10.1.2.3", "10.0.0.0/8"]}, ["10.0.0.0/8"], None),
        ({"destination": ["ten", "11.0.0.0/8"]}, None, ["10.0.0.0/7", "fd10::/16"]),
        ({"rule_set": "ten"}, None, ["10.0.0.0/8", "fd10::/16"]),
        ({"rule_set": "ten", "destination": "half"}, None, ["10.0.0.0/9"]),
        ({"rule_set": "empty"}, None, []),
        ({"rule_set": "ten", "destination": "192.0.2.1"}, None, []),
    ],
)
def test_addresses(
    keys: dict[str, Any], source: list[str] | None, destination: list[str] | None
) -> None:
    rule = first(**keys)
    assert (texts(rule.source), texts(rule.destination)) == (source, destination)


def test_ports_are_merged_and_bring_their_protocols() -> None:
    rule = first(port=[443, "80-90", "85-100", 101, 444], source_port=5)
    assert rule.ports == ((80, 101), (443, 444))
    assert rule.source_ports == ((5, 5),)
    assert rule.protocols == (Protocol.TCP, Protocol.UDP)
    assert first(port=1, protocol="udp").protocols == (Protocol.UDP,)
    assert first().protocols == ()


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({}, "rules[0] -> home"),
        ({"subnet": "kids", "port": 443}, "rules[0] subnet=kids port=443 -> home"),
        (
            {"destination": ["10.0.0.1", "ten", "fd00::/8"], "protocol": ["tcp", "udp"]},
            "rules[0] destination=10.0.0.1,ten,fd00::/8 protocol=tcp,udp -> home",
        ),
        ({"port": [1, 2, 3, 4, 5, "7-9"]}, "rules[0] port=1,2,3,4,+2 -> home"),
    ],
)
def test_the_text_is_the_rule_as_written(keys: dict[str, Any], text: str) -> None:
    assert first(**keys).text == text


def test_a_rule_that_can_match_nothing_matches_nothing() -> None:
    policy = compiled({"rule_set": "empty", "to": "reject"})
    facts = FlowFacts(Protocol.TCP, Endpoint("192.168.20.1", 1), Endpoint("10.0.0.1", 2))
    assert policy.decide(facts) == Decision("direct", 1, "rules[1] -> direct")


def test_ports_never_match_icmp() -> None:
    policy = compiled({"port": "1-65535", "to": "reject"})
    facts = FlowFacts(Protocol.ICMP, Endpoint("192.168.20.1", 8), Endpoint("10.0.0.1", 8))
    assert policy.settle(facts).outbound == "direct"


def test_a_policy_needs_its_rule_sets() -> None:
    with pytest.raises(KeyError, match="unheard"):
        first(rule_set="unheard")
