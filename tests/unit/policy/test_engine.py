"""The engine answers as a loop over the rules would."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.decision import Undecided
from gateway.flow import Endpoint, FlowFacts, Owner, Protocol
from gateway.policy.engine import Outcome, Policy
from gateway.policy.names import NamePatterns
from gateway.policy.prefixes import Network, address_number, interval
from gateway.policy.rule import WEEK, CompiledRule, Condition, Destinations, LargeSet

HOSTS = ["192.0.2.1", "192.0.2.200", "198.51.100.7", "2001:db8::1", "2001:db8:1::1", "fd00::5"]
PREFIXES = ["192.0.2.0/24", "192.0.2.0/25", "0.0.0.0/0", "2001:db8::/32", "::/0", "fd00::5/128"]
PORTS = [0, 1, 79, 80, 81, 443, 65535]

NAMES = ["a.example", "www.a.example", "b.example", "example", ""]
PATTERNS = ["a.example", "+.a.example", "*.a.example", "+.example", "keyword:b.ex", "regex:^w+[.]"]

ADDRESSES = st.none() | st.lists(st.sampled_from(PREFIXES), max_size=3).map(
    lambda texts: tuple(map(ip_network, texts))
)
RANGES = st.lists(
    st.tuples(st.sampled_from(PORTS), st.sampled_from(PORTS)).map(lambda pair: tuple(sorted(pair))),
    max_size=1,
).map(tuple)


def some(*values: Any) -> st.SearchStrategy[tuple[Any, ...]]:
    """Most often nothing is asked."""
    return st.just(()) | st.just(()) | st.lists(st.sampled_from(values), max_size=2).map(tuple)


@dataclass(frozen=True)
class Listed:
    """A large set's prefixes and domains, at once."""

    members: frozenset[str]

    def __len__(self) -> int:
        return len(self.intervals())

    def contains(self, number: int) -> bool:
        return any(address_number(host) == number for host in self.members & set(HOSTS))

    def intervals(self) -> list[tuple[int, int]]:
        return [interval(ip_network(host)) for host in self.members & set(HOSTS)]

    def matches(self, name: str) -> bool:
        return name in self.members


@dataclass(frozen=True)
class Places:
    """The first host is in UT and AS 1, the second has no country, the others are in UX."""

    def country(self, host: str) -> str:
        return {HOSTS[0]: "UT", HOSTS[1]: ""}.get(host, "UX")

    def asn(self, host: str) -> int:
        return {HOSTS[0]: 1}.get(host, 0)


MEMBERS = Listed(frozenset({HOSTS[0], HOSTS[3], "b.example"}))
SETS = [
    LargeSet("addresses", MEMBERS, None),
    LargeSet("names", None, MEMBERS),
    LargeSet("both", MEMBERS, MEMBERS),
]
DESTINATIONS = st.builds(
    Destinations,
    st.lists(st.sampled_from(PREFIXES), max_size=1).map(lambda t: tuple(map(ip_network, t))),
    st.lists(st.sampled_from(SETS), min_size=1, max_size=2).map(tuple),
)
ASKED: dict[str, st.SearchStrategy[Any]] = {
    "source": ADDRESSES,
    "destination": ADDRESSES,
    "destinations": st.just(()) | st.just(()) | st.lists(DESTINATIONS, max_size=2).map(tuple),
    "ports": RANGES,
    "source_ports": RANGES,
    "protocols": some(*Protocol),
    "interfaces": some("eth1", "eth2"),
    "macs": some("02:00:00:00:00:01", "02:00:00:00:00:02"),
    "hostnames": some("tv", "phone"),
    "dscps": some(0, 46),
    "uids": some(0, 1000),
    "gids": some(0, 1000),
    "cgroups": some("system.slice", "user.slice/a"),
    "names": st.none() | some(*PATTERNS).map(NamePatterns.of),
    "sniffed": some("tls", "http"),
    "countries": some("UT", "UX"),
    "asns": some(1, 2),
    "times": st.just(()) | st.just(((0, 60), (120, WEEK))),
}
#: At most three keys in one condition, so that some flows match.
CONDITIONS = st.lists(st.sampled_from(sorted(ASKED)), max_size=3, unique=True).flatmap(
    lambda keys: st.fixed_dictionaries({key: ASKED[key] for key in keys})
)
NESTED = st.fixed_dictionaries(
    {},
    optional={
        key: st.lists(CONDITIONS.map(lambda keys: Condition(**keys)), max_size=2).map(tuple)
        for key in ("all_of", "any_of", "none_of")
    },
)
RULES = st.tuples(CONDITIONS, st.just({}) | NESTED, st.booleans() | st.just(True)).map(
    lambda parts: {**parts[0], **parts[1], "sniff": parts[2]}
)
#: Of most rules in life that name a large set it is all that they ask for.
OF_SETS = st.fixed_dictionaries(
    {
        "destinations": st.sampled_from([(Destinations((), (each,)),) for each in SETS]),
        "ports": RANGES,
        "sniff": st.booleans(),
    }
)
ENDPOINTS = st.builds(Endpoint, st.sampled_from(HOSTS), st.sampled_from(PORTS))
FLOWS = st.builds(
    FlowFacts,
    st.sampled_from(Protocol),
    ENDPOINTS,
    ENDPOINTS,
    st.sampled_from(["", "eth1", "eth2", "eth3"]),
    st.sampled_from([None, "02:00:00:00:00:01", "02:00:00:00:00:03"]),
    st.sampled_from([None, "tv", "other"]),
    st.sampled_from([None, 0, 46]),
    st.none() | st.builds(Owner, st.sampled_from([None, 0, 1000]), st.sampled_from([None, 0])),
    st.none() | st.sampled_from(NAMES),
    st.sampled_from([None, "", "tls", "ssh"]),
)
MOMENTS = st.sampled_from([0, 59, 60, 119, 120, WEEK - 1])


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """The main list leads to ``one`` and ``two``, and ``one`` to ``two``."""

    def rules(title: str, leads_to: tuple[str, ...], most: int) -> list[CompiledRule]:
        made = []
        for index, keys in enumerate(draw(st.lists(RULES | OF_SETS, max_size=most))):
            goto = draw(st.sampled_from(["", "", *leads_to]))
            to = "" if goto else f"{title}{index}"
            made.append(CompiledRule(index, f"{title}[{index}]", to, goto, **keys))
        return made

    lists = {"one": rules("one", ("two",), 4), "two": rules("two", (), 4)}
    main = rules("rules", ("one", "two"), 8)
    last = CompiledRule(len(main), "", "last")
    return Policy([*main, last], lists, Places())


def matches(asked: Condition, facts: FlowFacts, now: int) -> bool | None:
    """Kleene's three-valued logic, straight from the fields' description."""
    return conjunction(
        [
            asked.source is None or inside(facts.source.host, asked.source),
            asked.destination is None or inside(facts.destination.host, asked.destination),
            *(in_sets(group, facts) for group in asked.destinations),
            in_ranges(asked.ports, facts.destination.port),
            in_ranges(asked.source_ports, facts.source.port),
            not asked.protocols or facts.protocol in asked.protocols,
            not asked.interfaces or facts.interface in asked.interfaces,
            not (asked.macs or asked.hostnames)
            or facts.mac in asked.macs
            or facts.hostname in asked.hostnames,
            not asked.dscps or facts.dscp in asked.dscps,
            *owned(asked, facts.owner or Owner()),
            asked.names is None or named(asked.names.matches, facts),
            not asked.sniffed or learnt(facts.sniffed, facts, lambda it: it in asked.sniffed),
            not asked.countries or Places().country(facts.destination.host) in asked.countries,
            not asked.asns or Places().asn(facts.destination.host) in asked.asns,
            not asked.times or any(first <= now < behind for first, behind in asked.times),
            *(matches(inner, facts, now) for inner in asked.all_of),
            not asked.any_of or disjunction([matches(i, facts, now) for i in asked.any_of]),
            *(negation(matches(inner, facts, now)) for inner in asked.none_of),
        ]
    )


def conjunction(answers: list[bool | None]) -> bool | None:
    return False if False in answers else None if None in answers else True


def disjunction(answers: list[bool | None]) -> bool | None:
    return True if True in answers else None if None in answers else False


def negation(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


def learnt(fact: str | None, facts: FlowFacts, asked: Callable[[str], bool]) -> bool | None:
    if fact is None and facts.protocol is not Protocol.ICMP:
        return None
    return bool(fact) and asked(fact or "")


def named(asked: Callable[[str], bool], facts: FlowFacts) -> bool | None:
    return learnt(facts.name, facts, asked)


def inside(host: str, networks: tuple[Network, ...]) -> bool:
    return any(ip_address(host) in network for network in networks)


def in_sets(group: Destinations, facts: FlowFacts) -> bool | None:
    host = facts.destination.host
    return disjunction(
        [
            inside(host, group.networks),
            *(each.prefixes is not None and host in MEMBERS.members for each in group.sets),
            *(named(MEMBERS.matches, facts) for each in group.sets if each.domains is not None),
        ]
    )


def owned(asked: Condition, owner: Owner) -> list[bool | None]:
    return [
        not asked.uids or owner.uid in asked.uids,
        not asked.gids or owner.gid in asked.gids,
        not asked.cgroups or owner.cgroup in asked.cgroups,
    ]


def in_ranges(ranges: tuple[tuple[int, int], ...], port: int) -> bool:
    return not ranges or any(first <= port <= last for first, last in ranges)


def first_match(
    policy: Policy, rules: tuple[CompiledRule, ...], facts: FlowFacts, now: int
) -> str | None:
    """The outbound that a plain walk finds; a text that begins with ? where a fact is missing."""
    for rule in rules:
        seen = facts
        if not rule.sniff:
            seen = facts._replace(name=facts.name or "", sniffed=facts.sniffed or "")
        held = matches(rule, seen, now)
        if held is None:
            return f"?{rule.text}"
        if held and not rule.goto:
            return rule.outbound
        if held:
            found = first_match(policy, policy.lists[rule.goto], seen, now)
            if found is not None:
                return found
    return None


@given(policies(), st.lists(st.tuples(FLOWS, MOMENTS), min_size=1, max_size=12))
def test_the_first_rule_that_matches_decides(
    policy: Policy, asked: list[tuple[FlowFacts, int]]
) -> None:
    for facts, now in asked:
        expected = first_match(policy, policy.rules, facts, now)
        answer = policy.decide(facts, now)
        shown = f"?{answer.rule}" if isinstance(answer, Undecided) else answer.outbound
        assert shown == expected


@given(policies(), FLOWS, MOMENTS)
def test_a_trace_ends_where_the_decision_is(policy: Policy, facts: FlowFacts, now: int) -> None:
    *tried, last = policy.trace(facts, now)
    assert last.answer == policy.decide(facts, now)
    assert all(step.answer is None for step in tried)
    assert all(bool(step.key) == (step.outcome is Outcome.MISSED) for step in tried)


@given(policies(), FLOWS, MOMENTS)
def test_what_can_be_learnt_ends_in_a_decision(policy: Policy, facts: FlowFacts, now: int) -> None:
    """Name first, then the protocol; what rules do not need is never asked for."""
    for _ in range(2):
        answer = policy.decide(facts, now)
        if isinstance(answer, Undecided):
            assert getattr(facts, answer.need) is None
            assert getattr(policy.needs, answer.need) or answer.need == "name"
            facts = facts._replace(**{answer.need: ""})
    assert policy.decide(facts, now) == policy.settle(facts, now)


@given(policies(), FLOWS, MOMENTS)
def test_a_policy_goes_to_workers_whole(policy: Policy, facts: FlowFacts, now: int) -> None:
    assert pickle.loads(pickle.dumps(policy)).decide(facts, now) == policy.decide(facts, now)


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
        assert policy.settle(facts).outbound == f"out{n}"
    elsewhere = FlowFacts(Protocol.TCP, Endpoint("192.0.2.1", 1), Endpoint("10.3.0.1", 2))
    assert policy.settle(elsewhere).outbound == "last"


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
    assert not Policy([last]).needs.interface
    assert Policy([CompiledRule(0, "", "a", interfaces=("eth1",)), last]).needs.interface


def test_a_name_is_an_error() -> None:
    facts = FlowFacts(Protocol.TCP, Endpoint("192.0.2.1", 1), Endpoint("a.example", 443))
    with pytest.raises(ValueError, match=r"a\.example"):
        Policy([CompiledRule(0, "", "a")]).decide(facts)
