"""The kernel's rules and the policy engine give every flow the same answer, on both backends."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from gateway.config.schema import Config, Rule
from gateway.flow import Endpoint, FlowFacts, Protocol
from gateway.plan.build import build_plan
from gateway.plan.model import Backend, Plan
from gateway.plan.xt import chain_name, xt_tables
from gateway.policy.compile import compile_policy

from .netfilter import family_of, walk, walk_xt
from .scenarios import HOME, ROUTER

OUTBOUNDS = {
    **HOME,
    "icmp": {"type": "reject", "answer": "icmp"},
    "silent": {"type": "reject", "answer": "drop"},
}
#: What the chain does to a packet of each outbound.
ANSWER = {
    "direct": "direct",
    "reject": "refuse",
    "icmp": "refuse_icmp",
    "silent": "drop",
    "home": "divert",
}

#: Few, and nested, so that rules and packets often meet.
V4 = ["10.0.0.0/8", "10.0.1.0/24", "10.0.1.7/32", "192.0.2.0/24", "0.0.0.0/0"]
V6 = ["fd00::/8", "fd00:1::/64", "2001:db8::/32", "fd00:1::7/128", "::/0"]
HOSTS = {4: ["10.0.1.7", "10.9.9.9", "192.0.2.1"], 6: ["fd00:1::7", "fd00:2::1", "2001:db8::1"]}
PORTS = [22, 79, 80, 81, 443, 8000]

outbounds = st.sampled_from(list(ANSWER))
networks = st.lists(st.sampled_from([*V4, *V6]), max_size=4)
ports = st.lists(st.sampled_from([p for port in PORTS for p in (port, f"{port}-{port + 1}")]))
rules = st.builds(
    Rule.model_validate,
    st.fixed_dictionaries(
        {"to": outbounds},
        optional={
            "source": networks,
            "destination": networks,
            "interface": st.sampled_from(["lan0", "lan1"]),
        },
    ).flatmap(
        lambda rule: st.one_of(
            st.fixed_dictionaries({"protocol": st.lists(st.sampled_from(["tcp", "udp", "icmp"]))}),
            st.fixed_dictionaries(
                {
                    "protocol": st.lists(st.sampled_from(["tcp", "udp"])),
                    "port": ports,
                    "source_port": ports,
                }
            ),
        ).map(lambda more: {**rule, **more})
    ),
)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    return Config.model_validate(
        {
            "lan": {"interfaces": ["lan0", "lan1"], "this_machine": True},
            "outbounds": OUTBOUNDS,
            "rules": [*draw(st.lists(rules, max_size=5)), Rule(to=draw(outbounds))],
        }
    )


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
