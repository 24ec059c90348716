"""The walk through a plan's chains ends where the policy engine says, and says how."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies import CONFIG, policies

from gateway.flow import Endpoint, FlowFacts, Protocol
from gateway.marks import Marks
from gateway.plan.build import build_plan
from gateway.plan.model import Backend
from gateway.plan.walk import AddressType, Fate, Walk, walk
from gateway.policy.engine import Policy

from .scenarios import ROUTER, SCENARIOS
from .test_meaning import EVERY, FLOWS

FATES = {
    "direct": Fate.DIRECT,
    "reject": Fate.REFUSED,
    "icmp": Fate.REFUSED,
    "silent": Fate.DROPPED,
    "home": Fate.DIVERTED,
    "mixed": Fate.DIVERTED,
    "plain": Fate.DIRECT,
}


@given(policies(), st.integers(0, EVERY - 1), st.sampled_from(Backend))
def test_the_fate_is_the_engines_decision(policy: Policy, start: int, backend: Backend) -> None:
    plan = build_plan(CONFIG, policy, ROUTER, backend)
    for packet in FLOWS[start::EVERY]:
        wanted = FATES[policy.settle(packet).outbound]
        if wanted is Fate.DIVERTED and packet.protocol is Protocol.ICMP:
            wanted = Fate.LEFT_ALONE
        assert walk(plan, Marks(CONFIG.marks.base), packet, "unicast").fate is wanted


def walked(
    scenario: str,
    interface: str,
    kind: AddressType = "unicast",
    source: str = "10.0.1.9",
    destination: str = "198.51.100.1",
    port: int = 80,
) -> Walk:
    plan = SCENARIOS[scenario].plan(Backend.NFTABLES)
    marks = Marks(SCENARIOS[scenario].config.get("marks", {}).get("base", Marks().base))
    facts = FlowFacts(Protocol.TCP, Endpoint(source, 40000), Endpoint(destination, port), interface)
    return walk(plan, marks, facts, kind)


@pytest.mark.parametrize("scenario", ["lan", "lan_redirect", "lan_open", "other_marks"])
def test_every_way_of_diverting_is_seen(scenario: str) -> None:
    assert walked(scenario, "lan0").fate is Fate.DIVERTED


@pytest.mark.parametrize("scenario", ["own", "own_redirect"])
def test_this_machines_own_flows(scenario: str) -> None:
    assert walked(scenario, "").fate is Fate.DIVERTED
    assert walked(scenario, "", "local").fate is Fate.LEFT_ALONE
    assert walked("lan", "").fate is Fate.LEFT_ALONE


def test_what_no_rule_is_asked_about() -> None:
    assert walked("lan", "wan0") == Walk((), Fate.LEFT_ALONE)
    assert walked("lan", "lan0", "multicast").hops[-1].rule == "not-forwarded"
    assert walked("upstream_in_lan", "lan0", source="10.0.1.50").fate is Fate.LEFT_ALONE


def test_the_hops_are_the_rules_that_matched() -> None:
    way = walked("rules", "lan0", destination="10.9.9.9")
    assert [(hop.chain, hop.rule) for hop in way.hops][:3] == [
        ("prerouting", "lan"),
        ("lan", "decide"),
        ("decide", "rule-0-ipv4"),
    ]
    assert (way.fate, way.rule) == (Fate.DIRECT, "rule-0-ipv4")
