"""The kernel's rules and the policy engine give every flow the same answer, on both backends."""

from __future__ import annotations

from itertools import product

import hypothesis.strategies as st
from hypothesis import given
from policies import CONFIG, NAME, all_flows, in_doubt, policies

from gateway.flow import FlowFacts, Protocol
from gateway.plan.build import build_plan
from gateway.plan.model import Backend, Plan
from gateway.plan.xt import chain_name, xt_tables
from gateway.policy.engine import Policy
from gateway.policy.rule import WEEK

from .netfilter import family_of, walk, walk_xt
from .scenarios import ROUTER

#: What the chain does to a packet of each outbound.
ANSWER = {
    "direct": "direct",
    "reject": "refuse",
    "icmp": "refuse_icmp",
    "silent": "drop",
    "home": "divert",
    "mixed": "divert",
    "plain": "direct",
}


FLOWS = all_flows()
#: Of the flows, every so many-th is tried on a policy.
EVERY = 101
TCP = [flow for flow in FLOWS if flow.protocol is Protocol.TCP]


def _answers(plan: Plan, chain: str, packet: FlowFacts) -> str:
    sets = {s.name: s.elements for s in plan.sets}
    if plan.backend is Backend.NFTABLES:
        return walk(plan.chains, chain, packet, sets)
    tables = xt_tables(plan, family_of(packet))
    chains = [c for table in tables for c in table.chains]
    return walk_xt(chains, chain_name(chain), packet, sets)


def _fate(plan: Plan, packet: FlowFacts) -> str:
    own = not packet.interface
    answer = _answers(plan, "decide_own" if own else "decide", packet)
    return answer.removesuffix("_own") if own else answer


@given(policies(), st.integers(0, EVERY - 1), st.sampled_from(Backend))
def test_kernel_agrees_with_engine(policy: Policy, start: int, backend: Backend) -> None:
    """Where no rule asks for more than the kernel knows."""
    plan = build_plan(CONFIG, policy, ROUTER, backend)
    for packet in FLOWS[start::EVERY]:
        assert _fate(plan, packet) == ANSWER[policy.settle(packet).outbound]


@given(policies(doubtful=True), st.integers(0, EVERY - 1))
def test_what_the_kernel_decides_nothing_that_is_learnt_would_change(
    policy: Policy, start: int
) -> None:
    """And it asks about no flow that meets its rule before one that is in doubt."""
    plan = build_plan(CONFIG, policy, ROUTER, Backend.NFTABLES)
    for packet in TCP[start::EVERY]:
        fate = _fate(plan, packet)
        hostnames = (None, "tv") if packet.interface else (None,)
        learnt = [
            (packet._replace(name=name, sniffed=sniffed, hostname=hostname), now)
            for name, sniffed, hostname, now in product(
                ("", NAME), ("", "tls"), hostnames, (0, WEEK - 1)
            )
        ]
        answers = {ANSWER[policy.settle(*each).outbound] for each in learnt}
        assert fate == "divert" or answers == {fate}
        tried = {step.rule for each in learnt for step in policy.trace(*each)}
        if not any(in_doubt(rule, packet) for rule in tried):
            assert answers == {fate}
