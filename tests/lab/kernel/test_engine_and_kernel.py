"""Random policies: every flow meets in the kernel what the engine decides for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import all_flows, configs

from gateway.config.schema import Config
from gateway.flow import FlowFacts, Protocol
from gateway.kernel.applier import Applier
from gateway.plan.build import build_plan
from gateway.plan.host import Feature, HostFacts
from gateway.plan.model import Backend
from gateway.policy.compile import compile_policy

from .witness import Router

HOST = HostFacts(features={"ipv6": Feature(True, "")})
FATES = {
    "direct": "direct",
    "home": "divert",
    "reject": "refuse",
    "icmp": "refuse_icmp",
    "silent": "drop",
}
FLOWS = all_flows()


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


@settings(max_examples=8)
@given(config=configs(), mode=st.sampled_from(["tproxy", "redirect"]))
def test_packets_meet_what_the_engine_decides(
    router: Router, applier: Applier, backend: Backend, config: Config, mode: str
) -> None:
    inbound = config.inbound.model_copy(update={"tcp": mode})
    config = config.model_copy(update={"inbound": inbound})
    policy = compile_policy(config, {})
    router.ns.call(applier.apply, build_plan(config, policy, HOST, backend))
    wanted = [fate(policy.decide(flow).outbound, flow) for flow in FLOWS]
    found = router.fates(FLOWS)
    wrong = [
        (flow, here, there)
        for flow, here, there in zip(FLOWS, wanted, found, strict=True)
        if here != there
    ]
    assert not wrong
