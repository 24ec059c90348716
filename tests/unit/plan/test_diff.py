"""What differs between a machine and a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from ipaddress import ip_network

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gateway.marks import TAG_PREFIX
from gateway.plan.addresses import Family
from gateway.plan.diff import SysctlChange, diff
from gateway.plan.model import Backend, Chain, NftRule, Plan, Route
from gateway.plan.snapshot import ChainKey, Snapshot, expected_chains
from gateway.plan.verdicts import Accept

from .scenarios import SCENARIOS

KEY = ChainKey("gateway", "c", "inet")


def _installed(plan: Plan) -> Snapshot:
    return Snapshot(
        chains=expected_chains(plan),
        sets={s.name: frozenset(s.elements) for s in plan.sets},
        ip_rules=frozenset(plan.ip_rules),
        routes=frozenset(plan.routes),
        sysctls={sysctl.key: sysctl.value for sysctl in plan.sysctls},
        restore={sysctl.key: "0" for sysctl in plan.sysctls},
    )


def _plan(tags: Collection[str]) -> Plan:
    rules = tuple(NftRule(tag, Accept()) for tag in tags)
    return Plan(Backend.NFTABLES, (Chain("c", "mangle", rules),))


@pytest.mark.parametrize("backend", Backend)
@pytest.mark.parametrize("name", SCENARIOS)
def test_installed_plan_differs_in_nothing(name: str, backend: Backend) -> None:
    plan = SCENARIOS[name].plan(backend)
    difference = diff(_installed(plan), plan)
    assert difference.empty
    assert difference.render() == ""


@pytest.mark.parametrize("backend", Backend)
@pytest.mark.parametrize("name", SCENARIOS)
def test_all_of_a_plan_is_new_on_a_bare_machine(name: str, backend: Backend) -> None:
    plan = SCENARIOS[name].plan(backend)
    difference = diff(Snapshot(), plan)
    assert {key: change.added for key, change in difference.chains.items()} == expected_chains(plan)
    assert set(difference.ip_rules.added) == set(plan.ip_rules)
    assert set(difference.routes.added) == set(plan.routes)
    assert [change.key for change in difference.sysctls] == [s.key for s in plan.sysctls]
    assert not any("-" in line.split()[:1] for line in difference.render().splitlines())


@pytest.mark.parametrize("backend", Backend)
def test_removal_takes_all_away(backend: Backend) -> None:
    plan = SCENARIOS["lan_and_own"].plan(backend)
    difference = diff(_installed(plan), Plan(backend))
    removed = {key: change.removed for key, change in difference.chains.items()}
    assert removed == expected_chains(plan)
    assert set(difference.sets) == {s.name for s in plan.sets}
    assert set(difference.ip_rules.removed) == set(plan.ip_rules)
    assert SysctlChange("net.ipv4.ip_forward", "1", "0") in difference.sysctls


def test_other_backend_is_replaced() -> None:
    scenario = SCENARIOS["lan"]
    installed = _installed(scenario.plan(Backend.IPTABLES))
    difference = diff(installed, scenario.plan(Backend.NFTABLES))
    tables = {key.table for key, change in difference.chains.items() if change.removed}
    assert tables == {"mangle", "filter"}
    assert difference.chains[ChainKey("gateway", "decide", "inet")].added
    assert difference.ip_rules.empty


@given(st.lists(st.sampled_from("abcdef"), unique=True), st.permutations("abcdefgh"))
def test_chain_change_leads_to_the_plan(installed: list[str], wanted: list[str]) -> None:
    now = tuple(NftRule(tag, Accept()).tag for tag in installed)
    plan = _plan(wanted)
    tags = expected_chains(plan)[KEY]
    change = diff(Snapshot(chains={KEY: now}), plan).chains[KEY]
    assert Counter(now) - Counter(change.removed) + Counter(change.added) == Counter(tags)
    stayed = [tag for tag in now if tag not in (*change.removed, *change.moved)]
    assert [tag for tag in tags if tag in stayed] == stayed, "what did not move keeps its order"


def test_moved_rule() -> None:
    plan = _plan("ab")
    tags = expected_chains(plan)[KEY]
    change = diff(Snapshot(chains={KEY: tags[::-1]}), plan).chains[KEY]
    assert (change.added, change.removed, len(change.moved)) == ((), (), 1)


def test_elements_of_a_dead_man_set_come_and_go() -> None:
    plan = SCENARIOS["lan_open"].plan(Backend.NFTABLES)
    installed = _installed(plan)
    assert diff(replace(installed, sets={s.name: frozenset() for s in plan.sets}), plan).empty
    assert set(diff(replace(installed, sets={}), plan).sets) == {"gw_alive4", "gw_alive6"}


def test_sysctl_that_stands_already_is_no_change() -> None:
    plan = SCENARIOS["lan_v4_only"].plan(Backend.NFTABLES)
    (sysctl,) = plan.sysctls
    bare = Snapshot(sysctls={sysctl.key: sysctl.value})
    assert diff(bare, plan).sysctls == ()


def test_sysctl_that_we_did_not_change_is_not_restored() -> None:
    bare = Snapshot(sysctls={"net.ipv4.ip_forward": "1"})
    assert diff(bare, Plan(Backend.NFTABLES)).empty


def test_render() -> None:
    route = Route(Family.V4, "local", ip_network("0.0.0.0/0"), "lo", 8801)
    plan = SCENARIOS["all_direct"].plan(Backend.NFTABLES)
    installed = _installed(plan)
    stray = ChainKey("gateway", "stray", "inet")
    prefixes = frozenset(ip_network("10.0.0.0/24").subnets(new_prefix=28))
    changed = replace(
        installed,
        chains={
            **installed.chains,
            stray: (f"{TAG_PREFIX}gone:00000000", ""),
        },
        sets={"gw_old": prefixes},
        routes=installed.routes - {route},
        sysctls={**installed.sysctls, "net.ipv4.ip_forward": "0"},
    )
    assert diff(changed, plan).render() == (
        "table gateway, chain stray (inet)\n"
        "  - gone:00000000\n"
        "  - (a rule that is not ours)\n"
        "set gw_old\n"
        + "".join(f"  - 10.0.0.{host}/28\n" for host in range(0, 128, 16))
        + "  - ... and 8 more\n"
        "~ sysctl net.ipv4.ip_forward: 0 -> 1\n"
        "+ ip -4 route add local 0.0.0.0/0 dev lo table 8801 proto 0x67\n"
    )
