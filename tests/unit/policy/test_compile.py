"""Rules as written become rules with every name resolved."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from gateway.config.schema import Config
from gateway.decision import Decision
from gateway.flow import Endpoint, FlowFacts, Protocol
from gateway.marks import Mark
from gateway.policy.compile import Accounts, compile_policy
from gateway.policy.engine import Policy
from gateway.policy.rule import CompiledRule
from gateway.policy.rulesets import RuleSetData

SETS = {
    "ten": RuleSetData.of_networks("ten", (ip_network("10.0.0.0/8"), ip_network("fd10::/16"))),
    "half": RuleSetData.of_networks("half", (ip_network("10.0.0.0/9"),)),
    "empty": RuleSetData.of_networks("empty", ()),
}
SUBNETS = {"kids": ["192.168.20.0/24", "fd00:20::/64"], "more": ["192.168.21.0/24"]}


DEVICES = {"tv": {"mac": "02:00:5e:00:53:01", "hostname": "TV-Set"}}
FACTS = FlowFacts(Protocol.TCP, Endpoint("192.168.20.1", 1), Endpoint("10.0.0.1", 2))


def compiled(*rules: dict[str, Any]) -> Policy:
    config = Config.model_validate(
        {
            "lan": {"interfaces": "eth1", "subnets": SUBNETS, "devices": DEVICES},
            "rules": [*rules, {"to": "direct"}],
        }
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


DAY = 24 * 60


@pytest.mark.parametrize(
    ("keys", "stretches"),
    [
        ({"time": "08:00-09:30", "weekday": "mon"}, [(480, 570)]),
        ({"weekday": "sat-sun"}, [(5 * DAY, 7 * DAY)]),
        ({"weekday": ["sun", "mon"]}, [(0, DAY), (6 * DAY, 7 * DAY)]),
        # Friday's night ends on Saturday; Sunday's on Monday.
        ({"time": "22:00-07:00", "weekday": "fri"}, [(4 * DAY + 1320, 5 * DAY + 420)]),
        ({"time": "22:00-07:00", "weekday": "sun"}, [(0, 420), (6 * DAY + 1320, 7 * DAY)]),
        ({"time": ["00:00-12:00", "12:00-24:00"]}, [(0, 7 * DAY)]),
        ({"time": ["01:00-02:00", "01:30-03:00"], "weekday": "mon"}, [(60, 180)]),
        ({}, []),
    ],
)
def test_times_are_stretches_of_the_week(
    keys: dict[str, Any], stretches: list[tuple[int, int]]
) -> None:
    assert list(first(**keys).times) == stretches


def test_devices_are_addresses_and_names() -> None:
    rule = first(device=["tv", "dhcp:Printer", "02-00-5E-00-53-09"])
    assert rule.macs == ("02:00:5e:00:53:01", "02:00:5e:00:53:09")
    assert rule.hostnames == ("tv-set", "printer")


def test_nested_conditions_have_keys_as_rules_have() -> None:
    rule = first(**{"not": {"port": 443, "all": {"subnet": "kids"}}, "any": [{"ip_version": 6}]})
    (none,) = rule.none_of
    assert none.ports == ((443, 443),)
    assert none.protocols == (Protocol.TCP, Protocol.UDP)
    assert texts(none.all_of[0].source) == ["192.168.20.0/24", "fd00:20::/64"]
    assert texts(rule.any_of[0].destination) == ["::/0"]
    assert rule.text == "rules[0] any=(ip_version=6) not=(port=443 all=(subnet=kids)) -> home"


def test_what_becomes_of_a_flow() -> None:
    rule = first(mark="0x10/0xf0", log=True, sniff=False, to="direct")
    decision = compiled({"mark": 16, "to": "direct", "log": True}).decide(FACTS)
    assert (rule.mark, rule.log, rule.sniff) == (Mark(0x10, 0xF0), True, False)
    assert decision == Decision("direct", 0, "rules[0] -> direct", Mark(0x10, 0x10), True)


def test_rules_lead_to_lists_and_back() -> None:
    config = Config.model_validate(
        {
            "lan": {"interfaces": "eth1"},
            "rules": [{"goto": "page"}, {"to": "direct"}],
            "lists": {"page": [{"port": 1, "to": "reject"}, {"port": 2, "to": "home"}]},
        }
    )
    policy = compile_policy(config, {})
    assert policy.decide(FACTS) == Decision("home", 1, "lists.page[1] port=2 -> home")
    assert policy.rules[0].text == "rules[0] -> goto page"
    elsewhere = FACTS._replace(destination=Endpoint("10.0.0.1", 3))
    assert policy.decide(elsewhere) == Decision("direct", 1, "rules[1] -> direct")


def test_users_and_groups_by_name() -> None:
    rules = [{"uid": ["proxy", 7], "gid": "staff", "to": "reject"}, {"to": "direct"}]
    config = Config.model_validate({"lan": {"this_machine": True}, "rules": rules})
    policy = compile_policy(config, {}, accounts=Accounts({"proxy": 13}, {"staff": 50}))
    assert (policy.rules[0].uids, policy.rules[0].gids) == ((13, 7), (50,))
    assert policy.rules[0].text == "rules[0] uid=proxy,7 gid=staff -> reject"
    with pytest.raises(KeyError, match="proxy"):
        compile_policy(config, {})


def test_a_policy_needs_its_rule_sets() -> None:
    with pytest.raises(KeyError, match="unheard"):
        first(rule_set="unheard")
