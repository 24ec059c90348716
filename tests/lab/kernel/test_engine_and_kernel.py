"""Random policies: every flow meets in the kernel what the engine decides for it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import CONFIG, PORTS, all_flows, policies

from gateway.decision import Decision, Undecided
from gateway.flow import FlowFacts, Protocol
from gateway.kernel.applier import Applier
from gateway.kernel.probe import probe_host
from gateway.plan.backend import QUEUE_NEEDS
from gateway.plan.build import build_plan
from gateway.plan.host import Feature, HostFacts
from gateway.plan.model import Backend
from gateway.policy.engine import Policy
from gateway.policy.rule import CompiledRule, Condition

from .answering import Answering
from .witness import Router

HOST = HostFacts(features={"ipv6": Feature(True, "")})
FATES = {
    "direct": "direct",
    "home": "divert",
    "mixed": "divert",
    "plain": "direct",
    "reject": "refuse",
    "icmp": "refuse_icmp",
    "silent": "drop",
}
#: Of all flows, every so many-th is tried on a policy.
EVERY = 5


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    router = Router()
    yield router
    router.close()


@pytest.fixture(scope="module", params=Backend)
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    return chosen


@pytest.fixture(scope="module")
def applier(
    router: Router, backend: Backend, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Applier]:
    applier = Applier(tmp_path_factory.mktemp("run"))
    yield applier
    router.ns.call(applier.remove)


def fate(outbound: str, flow: FlowFacts) -> str:
    """What a decision means for a packet; only TCP is carried."""
    carried = flow.protocol is Protocol.TCP
    return FATES[outbound] if carried or FATES[outbound] != "divert" else "direct"


@settings(max_examples=6, report_multiple_bugs=False)
@given(
    policy=policies(), mode=st.sampled_from(["tproxy", "redirect"]), start=st.integers(0, EVERY - 1)
)
def test_packets_meet_what_the_engine_decides(
    router: Router, applier: Applier, backend: Backend, policy: Policy, mode: str, start: int
) -> None:
    inbound = CONFIG.inbound.model_copy(update={"tcp": mode, "udp": "off"})
    config = CONFIG.model_copy(update={"inbound": inbound})
    router.ns.call(applier.apply, build_plan(config, policy, HOST, backend))
    flows = all_flows()[start::EVERY]
    wanted = [fate(policy.settle(flow).outbound, flow) for flow in flows]
    found = router.fates(flows)
    wrong = [
        (flow, here, there)
        for flow, here, there in zip(flows, wanted, found, strict=True)
        if here != there
    ]
    assert not wrong, policy.rules


def nested() -> Policy:
    """Forty rules of several tests each, and as many pages, which lead to one more."""
    ports = [
        Condition(protocols=(Protocol.TCP, Protocol.UDP), ports=((port, port),)) for port in PORTS
    ]
    lan0, often = Condition(interfaces=("lan0",)), Condition(dscps=(0, 46))
    tests = [
        {"any_of": (ports[n % 6],), "none_of": (Condition(any_of=(lan0, often)),)}
        for n in range(40)
    ]
    tests += [
        {"any_of": (Condition(none_of=(often,), all_of=(ports[n % 5],)), ports[5]), "dscps": dscps}
        for n, dscps in zip(range(40), cycle([(46,), (0,), (10,)]), strict=False)
    ]
    targets = ["direct", "silent", "icmp", "home"]
    rules = [
        CompiledRule(
            **test,
            index=index,
            text=f"rules[{index}]",
            outbound="" if index % 2 else targets[index // 2 % 4],
            goto=f"page{index}" if index % 2 else "",
        )
        for index, test in enumerate(tests)
    ]
    to_shared = CompiledRule(index=0, text="on", outbound="", goto="shared", none_of=(ports[0],))
    shared = [CompiledRule(index=0, text="shared", outbound="icmp", any_of=(ports[1], ports[4]))]
    pages = {rule.goto: [to_shared] for rule in rules if rule.goto}
    last = CompiledRule(index=len(rules), text="last", outbound="home")
    return Policy([*rules, last], {**pages, "shared": shared})


def test_many_rules_of_several_tests_and_many_lists(
    router: Router, applier: Applier, backend: Backend
) -> None:
    policy = nested()
    inbound = CONFIG.inbound.model_copy(update={"udp": "off"})
    config = CONFIG.model_copy(update={"inbound": inbound})
    router.ns.call(applier.apply, build_plan(config, policy, HOST, backend))
    flows = all_flows()[::EVERY]
    assert router.fates(flows) == [fate(policy.settle(flow).outbound, flow) for flow in flows]


@pytest.fixture(scope="module")
def answering(router: Router, backend: Backend) -> Iterator[Answering]:
    facts = router.ns.call(probe_host, backend.value, nfqueue=True)
    needed = QUEUE_NEEDS[backend]
    missing = [f"{name}: {facts.features[name].detail}" for name in needed if not facts.has(name)]
    if missing:
        pytest.skip("; ".join(missing))
    answering = Answering()
    router.ns.call(answering.open)
    yield answering
    answering.close()


@settings(max_examples=6, report_multiple_bugs=False)
@given(policy=policies(doubtful=True), start=st.integers(0, EVERY - 1))
def test_the_queue_decides_what_the_kernel_cannot(
    router: Router,
    answering: Answering,
    applier: Applier,
    backend: Backend,
    policy: Policy,
    start: int,
) -> None:
    """By the first packet alone, where that tells; and the listener gets the others."""
    inbound = CONFIG.inbound.model_copy(update={"classify": "nfqueue", "udp": "off"})
    config = CONFIG.model_copy(update={"inbound": inbound})
    answering.decide_by(policy)
    router.ns.call(applier.apply, build_plan(config, policy, HOST, backend))
    flows = [flow for flow in all_flows() if flow.interface][start::EVERY]
    wanted = []
    for flow in flows:
        answer: Decision | Undecided = policy.settle(flow, 0)
        if flow.protocol is Protocol.TCP:
            answer = policy.decide(flow, 0)
        undecided = isinstance(answer, Undecided)
        wanted.append("divert" if undecided else fate(answer.outbound, flow))
    found = router.fates(flows, answering.settled)
    wrong = [
        (flow, here, there)
        for flow, here, there in zip(flows, wanted, found, strict=True)
        if here != there
    ]
    assert not wrong, policy.rules
