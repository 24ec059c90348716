"""A large list of prefixes changes while packets that are in both versions pass."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest
from policies import CONFIG

from gateway.flow import Endpoint, FlowFacts, Protocol
from gateway.kernel.applier import Applier
from gateway.lab.process import wait_until
from gateway.plan.build import build_plan
from gateway.plan.host import Feature, HostFacts
from gateway.plan.model import Backend, Plan
from gateway.policy.engine import Policy
from gateway.policy.prefixes import interval
from gateway.policy.rule import CompiledRule, Destinations, LargeSet
from gateway.policy.sets.intervals import IntervalSet

from .witness import Router

HOST = HostFacts(features={"ipv6": Feature(True, "")})
PREFIXES = 100_000
IN_BOTH = IPv4Network("192.0.2.0/24")


@pytest.fixture
def router() -> Iterator[Router]:
    router = Router()
    yield router
    router.close()


def listing(backend: Backend, first: str) -> Plan:
    """What goes to so many prefixes is direct, all else is dropped."""
    start = int(IPv4Network(first).network_address)
    # Every other one, so that none can be joined with its neighbour.
    many = [(start + 512 * n, start + 512 * n + 256) for n in range(PREFIXES)]
    large = LargeSet("many", IntervalSet.of([*many, interval(IPv6Network("2001:db8::/32"))]))
    rules = [
        CompiledRule(
            index=0, text="", outbound="direct", destinations=(Destinations((IN_BOTH,), (large,)),)
        ),
        CompiledRule(index=1, text="", outbound="silent"),
    ]
    return build_plan(CONFIG, Policy(rules), HOST, backend)


def flows() -> Iterator[FlowFacts]:
    """Each is a new one, so that the set is asked for every packet."""
    for port in range(1024, 60000):
        source, target = Endpoint("10.0.1.7", port), Endpoint("192.0.2.1", 443)
        yield FlowFacts(Protocol.UDP, source, target, "lan0", "02:00:00:00:00:01")


def test_a_large_set_is_swapped_without_a_packet_lost(
    router: Router, backend: Backend, tmp_path: Path
) -> None:
    applier = Applier(tmp_path)
    router.ns.call(applier.apply, listing(backend, "11.0.0.0/24"))
    swapped = threading.Event()
    swapping = router.ns.start(applier.apply, listing(backend, "101.0.0.0/24"))
    swapping.add_done_callback(lambda _: swapped.set())
    sent = 0
    for sent, flow in enumerate(flows(), start=1):
        router.send(flow, sent)
        if swapped.wait(0.001):
            break
    assert swapping.result().steps
    assert sent > 10, "the swap was over before it could be looked at"
    # What is lost before it comes to the rules was lost by nobody's swap.
    wait_until(lambda: router.forwarded() == router.arrived(), "every packet to get through")
    assert len(router.forwarded()) > 10
    router.ns.call(applier.remove)
