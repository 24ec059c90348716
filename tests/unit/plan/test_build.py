"""What holds for every plan, and what single choices change in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from gateway.config.schema import Config
from gateway.marks import Mark, Marks
from gateway.plan.addresses import Family
from gateway.plan.build import build_plan
from gateway.plan.host import DefaultRoute, Feature, HostFacts
from gateway.plan.matches import Addresses, InSet, MarkIs
from gateway.plan.model import Backend, Chain, NftRule, Plan
from gateway.plan.routing import ping_sysctls, sysctls
from gateway.plan.verdicts import Drop, Goto, Jump, Return, SetMark, Tproxy
from gateway.plan.xt import chain_name, xt_tables
from gateway.policy.compile import compile_policy

from .scenarios import ROUTER, SCENARIOS, Scenario

EVERY = [
    pytest.param(scenario, backend, id=f"{name}-{backend}")
    for name, scenario in SCENARIOS.items()
    for backend in Backend
]
DIVERTED = "the kernel diverts TCP, the listener connects through home"
every_plan = pytest.mark.parametrize(("scenario", "backend"), EVERY)


def _rules(plan: Plan) -> Iterator[NftRule]:
    return (rule for chain in plan.chains for rule in chain.rules)


def _chain(plan: Plan, name: str) -> Chain:
    (found,) = (chain for chain in plan.chains if chain.name == name)
    return found


def _plan(name: str, **lan_or_inbound: object) -> Plan:
    config = dict(SCENARIOS[name].config)
    config["inbound"] = {**config["inbound"], **lan_or_inbound}
    return Scenario(config).plan(Backend.NFTABLES)


@every_plan
def test_plan_is_a_value(scenario: Scenario, backend: Backend) -> None:
    assert scenario.plan(backend) == scenario.plan(backend)


@every_plan
def test_names_are_unique(scenario: Scenario, backend: Backend) -> None:
    plan = scenario.plan(backend)
    chains = [chain.name for chain in plan.chains]
    assert len(chains) == len(set(chains))
    for chain in plan.chains:
        names = [rule.name for rule in chain.rules]
        assert len(names) == len(set(names)), chain.name
        assert len(chain_name(chain.name)) <= 28


@every_plan
def test_jumps_lead_to_chains_of_their_table(scenario: Scenario, backend: Backend) -> None:
    plan = scenario.plan(backend)
    tables = {chain.name: chain.table for chain in plan.chains}
    targets = set()
    for chain in plan.chains:
        for rule in chain.rules:
            if isinstance(rule.verdict, Jump | Goto):
                targets.add(rule.verdict.chain)
                assert tables[rule.verdict.chain] == chain.table
    assert targets == {chain.name for chain in plan.chains if chain.hook is None}


@every_plan
def test_sets_are_those_that_rules_name(scenario: Scenario, backend: Backend) -> None:
    plan = scenario.plan(backend)
    named = {m.name for rule in _rules(plan) for m in rule.matches if isinstance(m, InSet)}
    assert named == {s.name for s in plan.sets}
    assert all(s.elements and len(s.name) <= 31 for s in plan.sets)


@every_plan
def test_address_rules_have_a_family(scenario: Scenario, backend: Backend) -> None:
    for rule in _rules(scenario.plan(backend)):
        if any(isinstance(m, Addresses | InSet) for m in rule.matches):
            assert rule.family is not None


@every_plan
def test_marks_stay_in_our_nibble(scenario: Scenario, backend: Backend) -> None:
    plan = scenario.plan(backend)
    mask = Marks(scenario.config.get("marks", {}).get("base", 0x0100_0000)).mask
    marks = [rule.verdict.mark for rule in _rules(plan) if isinstance(rule.verdict, SetMark)]
    marks += [m.mark for rule in _rules(plan) for m in rule.matches if isinstance(m, MarkIs)]
    marks += [rule.mark for rule in plan.ip_rules if rule.mark]
    owners = {Mark(0x10, 0xF0)} if "mark" in scenario.config["rules"][0] else set()
    assert {mark.mask for mark in {*marks} - owners} == {mask}


@every_plan
def test_no_ipv6_on_a_host_without(scenario: Scenario, backend: Backend) -> None:
    plan = replace(scenario, host=SCENARIOS["lan_v4_only"].host).plan(backend)
    assert {rule.family for rule in _rules(plan)} == {Family.V4}
    assert xt_tables(plan, Family.V6) == ()
    assert all(x.family is Family.V4 for x in (*plan.sets, *plan.ip_rules, *plan.routes))
    assert not any(sysctl.key.startswith("net.ipv6") for sysctl in plan.sysctls)


def test_closed_drops_what_finds_no_listener() -> None:
    rules = _chain(_plan("lan"), "divert").rules
    assert isinstance(rules[0].verdict, SetMark), "marked before tproxy"
    assert all(isinstance(rule.verdict, Tproxy) for rule in rules[1:3])
    assert isinstance(rules[3].verdict, Drop)


def test_open_asks_the_dead_man_set_first_and_lets_go() -> None:
    plan = _plan("lan", on_failure="open")
    rules = _chain(plan, "divert").rules
    assert [r.verdict for r in rules[:2]] == [Return(), Return()]
    assert all(isinstance(m, InSet) and m.negate for r in rules[:2] for m in r.matches)
    assert rules[-1].verdict == SetMark(Mark(0, Marks().mask)), "no mark of ours is left"
    assert all(s.timeout_s == 5 for s in plan.sets)


def test_dead_man_sets_only_where_open() -> None:
    assert not _plan("lan").sets
    assert {s.name for s in _plan("own", on_failure="open").sets} == {"gw_alive4", "gw_alive6"}


@pytest.mark.parametrize("scenario", ["lan_redirect", "own_redirect"])
def test_redirect_needs_no_policy_routing(scenario: str) -> None:
    plan = _plan(scenario, udp="off")
    assert (plan.ip_rules, plan.routes) == ((), ())


def test_preserved_sources_need_policy_routing_even_with_redirect() -> None:
    plan = SCENARIOS["preserve_source"].plan(Backend.NFTABLES)
    assert {rule.priority for rule in plan.ip_rules} == {8800, 8801, 8809}
    assert {route.table for route in plan.routes} == {8801}


@pytest.mark.parametrize(
    ("foreign", "first"), [(None, 8800), (32766, 8800), (8812, 8800), (8811, 8799), (5210, 5198)]
)
def test_ladder_stands_before_the_rules_of_others(foreign: int | None, first: int) -> None:
    host = replace(ROUTER, first_rule=foreign)
    rules = replace(SCENARIOS["own"], host=host).plan(Backend.NFTABLES).ip_rules
    assert sorted({rule.priority - first for rule in rules}) == [0, 1, 2, 9]
    assert {rule.goto for rule in rules if rule.action == "goto"} == {first + 9}


def test_own_mark_has_a_rule_only_with_this_machine() -> None:
    assert 8802 not in {rule.priority for rule in _plan("lan").ip_rules}
    assert 8802 in {rule.priority for rule in _plan("own").ip_rules}


def test_own_traffic_knows_no_interface_rules() -> None:
    plan = SCENARIOS["lan_and_own"].plan(Backend.NFTABLES)
    assert "rule-4" in {rule.name for rule in _chain(plan, "decide").rules}
    assert "rule-4" not in {rule.name for rule in _chain(plan, "decide_own").rules}


@pytest.mark.parametrize("backend", Backend)
def test_host_firewall_is_left_where_asked(backend: Backend) -> None:
    config = {**SCENARIOS["lan"].config, "inbound": {"host_firewall": "leave"}}
    plan = Scenario(config).plan(backend)
    assert plan.accept_input == ()
    assert "filter_input" not in {chain.name for chain in plan.chains}


def test_accepted_marks_are_those_that_are_set() -> None:
    assert _plan("lan").accept_input == (Marks().divert,)
    assert _plan("own").accept_input == (Marks().divert_own,)
    assert _plan("all_direct").accept_input == ()


def test_equal_lists_share_a_set() -> None:
    twice = {"destination": ["10.0.0.0/8", "192.168.0.0/16"], "to": "direct"}
    rules = [twice, {**twice, "protocol": "udp", "to": "reject"}, {"to": "home"}]
    plan = Scenario({**SCENARIOS["lan"].config, "rules": rules}).plan(Backend.NFTABLES)
    assert len(plan.sets) == 1


def test_changed_list_is_another_set() -> None:
    def set_names(*prefixes: str) -> set[str]:
        rules = [{"destination": list(prefixes), "to": "direct"}, {"to": "home"}]
        plan = Scenario({**SCENARIOS["lan"].config, "rules": rules}).plan(Backend.NFTABLES)
        return {s.name for s in plan.sets}

    assert not set_names("10.0.0.0/8", "192.168.0.0/16") & set_names("10.0.0.0/8", "172.16.0.0/12")


@pytest.mark.parametrize(
    ("rule", "place", "reason"),
    [
        ({"to": "direct"}, "kernel", "routed on, never enters the gateway"),
        ({"to": "reject"}, "kernel", "refused there (tcp-reset)"),
        (
            {"protocol": "tcp", "to": "home"},
            "both",
            DIVERTED,
        ),
        (
            {"port": 53, "to": "home"},
            "both",
            "the kernel diverts TCP and UDP, the listener connects through home",
        ),
        (
            {"protocol": ["udp", "icmp"], "to": "home"},
            "both",
            f"{DIVERTED.replace('TCP', 'UDP')}; ICMP: routed on, not proxied",
        ),
        (
            {"protocol": "icmp", "to": "home"},
            "kernel",
            "ICMP: routed on, not proxied",
        ),
    ],
)
def test_placement(rule: dict[str, object], place: str, reason: str) -> None:
    config = {**SCENARIOS["lan"].config, "rules": [rule, {"to": "direct"}]}
    placement = Scenario(config).plan(Backend.NFTABLES).placements[0]
    assert (placement.place, placement.reason) == (place, reason)


def test_direct_with_an_option_is_not_the_kernels() -> None:
    config = Config.model_validate(
        {
            **SCENARIOS["lan"].config,
            "outbounds": {
                "plain": {"type": "direct"},
                "bound": {"type": "direct", "interface": "wan0"},
            },
            "rules": [{"port": 80, "to": "plain"}, {"to": "bound"}],
        }
    )
    plan = build_plan(config, compile_policy(config, {}), ROUTER, Backend.NFTABLES)
    verdicts = [rule.verdict for rule in _chain(plan, "decide").rules]
    assert verdicts == [Goto("direct"), Goto("divert")]


def test_forwarding_can_be_left_alone() -> None:
    lan = Config.model_validate(SCENARIOS["lan"].config).lan
    assert sysctls(lan, ROUTER)
    assert sysctls(lan.model_copy(update={"forwarding": False}), ROUTER) == ()
    assert sysctls(lan.model_copy(update={"interfaces": ()}), ROUTER) == ()


def test_accept_ra_before_forwarding_and_only_where_routes_are_learnt() -> None:
    lan = Config.model_validate(SCENARIOS["lan"].config).lan
    keys = [sysctl.key for sysctl in sysctls(lan, ROUTER)]
    assert keys[-2:] == ["net.ipv6.conf.wan0.accept_ra", "net.ipv6.conf.all.forwarding"]
    static = replace(ROUTER, default_routes=(DefaultRoute("ipv6", "wan0", "fe80::1"),))
    assert not any("accept_ra" in sysctl.key for sysctl in sysctls(lan, static))


@pytest.mark.parametrize(
    ("now", "wanted"),
    [("1 0", "7 7"), ("0 2147483647", "0 2147483647"), ("7 9", "7 9"), ("9 9", "7 9"), ("", None)],
)
def test_ping_sockets_are_for_our_group_beside_those_who_have_them(
    now: str, wanted: str | None
) -> None:
    sysctls = {"net.ipv4.ping_group_range": now} if now else {}
    found = ping_sysctls(HostFacts(sysctls=sysctls, group=7))
    assert [setting.value for setting in found] == ([wanted] if wanted else [])
    # Once it is set, the same is wanted.
    if wanted:
        again = ping_sysctls(HostFacts(sysctls={"net.ipv4.ping_group_range": wanted}, group=7))
        assert again == found


@pytest.mark.parametrize("backend", Backend)
def test_a_kernel_that_cannot_look_at_hops_is_not_asked_to(backend: Backend) -> None:
    """iptables has a module for it; nftables reads any byte of a packet."""
    scenario = SCENARIOS["lan"]
    without = {**scenario.host.features, "iptables-hops": Feature(False, "no xt_hl")}
    plan = replace(scenario, host=replace(scenario.host, features=without)).plan(backend)
    names = {rule.name for rule in _chain(plan, "lan").rules}
    assert ("last-hop-ipv4" in names) is (backend is Backend.NFTABLES)


def test_what_is_in_the_tun_stays_in_a_table_of_its_own() -> None:
    """Whatever it takes by routing: by its mark, and for this machine by the device's address."""
    plan = _plan("default_route_tun")
    assert {rule.priority: rule.table for rule in plan.ip_rules if rule.table in (8802, 8803)} == {
        8804: 8802,
        8831: 8803,
    }
    assert {route.destination.prefixlen for route in plan.routes if route.table == 8802} == {0}
