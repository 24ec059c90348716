"""The kernel's rules and the policy engine give every flow the same answer, on both backends."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given
from policies import HOSTS, PORTS, configs

from gateway.config.schema import Config
from gateway.flow import Endpoint, FlowFacts, Protocol
from gateway.plan.build import build_plan
from gateway.plan.model import Backend, Plan
from gateway.plan.xt import chain_name, xt_tables
from gateway.policy.compile import compile_policy

from .netfilter import family_of, walk, walk_xt
from .scenarios import ROUTER

#: What the chain does to a packet of each outbound.
ANSWER = {
    "direct": "direct",
    "reject": "refuse",
    "icmp": "refuse_icmp",
    "silent": "drop",
    "home": "divert",
}


@st.composite
def packets(draw: st.DrawFn) -> FlowFacts:
    hosts = st.sampled_from(HOSTS[draw(st.sampled_from([4, 6]))])
    protocol = draw(st.sampled_from(Protocol))
    ports = st.just(0) if protocol is Protocol.ICMP else st.sampled_from(PORTS)
    source, destination = (Endpoint(draw(hosts), draw(ports)) for _ in range(2))
    return FlowFacts(protocol, source, destination, draw(st.sampled_from(["lan0", "lan1", ""])))


def _answers(plan: Plan, chain: str, packet: FlowFacts) -> str:
    sets = {s.name: s.elements for s in plan.sets}
    if plan.backend is Backend.NFTABLES:
        (rules,) = (c.rules for c in plan.chains if c.name == chain)
        return walk(rules, packet, sets)
    (xt_rules,) = (
        c.rules
        for table in xt_tables(plan, family_of(packet))
        for c in table.chains
        if c.name == chain_name(chain)
    )
    return walk_xt(xt_rules, packet, sets)


@given(configs(), st.lists(packets(), min_size=1, max_size=8), st.sampled_from(Backend))
def test_kernel_agrees_with_engine(
    config: Config, flows: list[FlowFacts], backend: Backend
) -> None:
    policy = compile_policy(config, {})
    plan = build_plan(config, policy, ROUTER, backend)
    for packet in flows:
        answer = ANSWER[policy.decide(packet).outbound]
        if packet.interface:
            assert _answers(plan, "decide", packet) == answer
        else:
            own = "divert_own" if answer == "divert" else answer
            assert _answers(plan, "decide_own", packet) == own
