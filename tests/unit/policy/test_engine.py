"""The engine answers as a loop over the rules would."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow import Endpoint, FlowFacts, Protocol
from gateway.policy.engine import CompiledRule, Policy

HOSTS = ["192.0.2.1", "192.0.2.200", "198.51.100.7", "2001:db8::1", "2001:db8:1::1", "fd00::5"]
PREFIXES = ["192.0.2.0/24", "192.0.2.0/25", "0.0.0.0/0", "2001:db8::/32", "::/0", "fd00::5/128"]
PORTS = [0, 1, 79, 80, 81, 443, 65535]

ADDRESSES = st.none() | st.lists(st.sampled_from(PREFIXES), max_size=3).map(
    lambda texts: tuple(map(ip_network, texts))
)
RANGES = st.lists(
    st.tuples(st.sampled_from(PORTS), st.sampled_from(PORTS)).map(lambda pair: tuple(sorted(pair))),
    max_size=1,
).map(tuple)
RULES = st.builds(
    CompiledRule,
    index=st.just(0),
    text=st.just(""),
    outbound=st.just("x"),
    source=ADDRESSES,
    destination=ADDRESSES,
    ports=RANGES,
    source_ports=RANGES,
    protocols=st.lists(st.sampled_from(Protocol), max_size=2, unique=True).map(tuple),
    interfaces=st.lists(st.sampled_from(["eth1", "eth2"]), max_size=2, unique=True).map(tuple),
)
ENDPOINTS = st.builds(Endpoint, st.sampled_from(HOSTS), st.sampled_from(PORTS))
FLOWS = st.builds(
    FlowFacts,
    st.sampled_from(Protocol),
    ENDPOINTS,
    ENDPOINTS,
    st.sampled_from(["", "eth1", "eth2", "eth3"]),
)


def numbered(rules: list[CompiledRule]) -> list[CompiledRule]:
    every = [*rules, CompiledRule(0, "", "last")]
    return [
        CompiledRule(
            index, f"rules[{index}]", f"out{index}", rule.source, rule.destination,
            rule.ports, rule.source_ports, rule.protocols, rule.interfaces,
        )
        for index, rule in enumerate(every)
    ]  # fmt: skip


def matches(rule: CompiledRule, facts: FlowFacts) -> bool:
    return (
        (rule.source is None or any(ip_address(facts.source.host) in n for n in rule.source))
        and (
            rule.destination is None
            or any(ip_address(facts.destination.host) in n for n in rule.destination)
        )
        and in_ranges(rule.ports, facts.destination.port)
        and in_ranges(rule.source_ports, facts.source.port)
        and (not rule.protocols or facts.protocol in rule.protocols)
        and (not rule.interfaces or facts.interface in rule.interfaces)
    )


def in_ranges(ranges: tuple[tuple[int, int], ...], port: int) -> bool:
    return not ranges or any(first <= port <= last for first, last in ranges)


@given(st.lists(RULES, max_size=12), st.lists(FLOWS, min_size=1, max_size=12))
def test_the_first_rule_that_matches_decides(
    rules: list[CompiledRule], flows: list[FlowFacts]
) -> None:
    policy = Policy(numbered(rules))
    for facts in flows:
        expected = next(rule for rule in policy.rules if matches(rule, facts))
        assert policy.decide(facts) == (expected.outbound, expected.index, expected.text)


def test_more_rules_than_bits_in_a_machine_word() -> None:
    rules = [
        CompiledRule(n, "", f"out{n}", destination=(ip_network(f"10.{n >> 8}.{n & 255}.0/24"),))
        for n in range(600)
    ]
    policy = Policy([*rules, CompiledRule(600, "", "last")])
    for n in (0, 63, 64, 599):
        facts = FlowFacts(
            Protocol.TCP, Endpoint("192.0.2.1", 1), Endpoint(f"10.{n >> 8}.{n & 255}.9", 2)
        )
        assert policy.decide(facts).outbound == f"out{n}"
    elsewhere = FlowFacts(Protocol.TCP, Endpoint("192.0.2.1", 1), Endpoint("10.3.0.1", 2))
    assert policy.decide(elsewhere).outbound == "last"


@pytest.mark.parametrize(
    "rules",
    [
        [],
        [CompiledRule(0, "", "a", ports=((1, 2),))],
        [CompiledRule(0, "", "a", source=())],
        [CompiledRule(0, "", "a", interfaces=("eth1",))],
    ],
    ids=str,
)
def test_without_a_catch_all_there_is_no_policy(rules: list[CompiledRule]) -> None:
    with pytest.raises(ValueError, match="must match everything"):
        Policy(rules)


def test_the_interface_is_needed_only_by_rules_that_name_one() -> None:
    last = CompiledRule(1, "", "b")
    assert not Policy([last]).needs_interface
    assert Policy([CompiledRule(0, "", "a", interfaces=("eth1",)), last]).needs_interface


def test_a_name_is_an_error() -> None:
    facts = FlowFacts(Protocol.TCP, Endpoint("192.0.2.1", 1), Endpoint("a.example", 443))
    with pytest.raises(ValueError, match=r"a\.example"):
        Policy([CompiledRule(0, "", "a")]).decide(facts)
