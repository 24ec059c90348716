"""The pipeline of datagrams: what outlives a reload."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from gateway.facts import FactFinder
from gateway.flow import CloseReason
from gateway.kernel.datagrams import Batch, Way
from gateway.kernel.sockets import SocketFactory
from gateway.kernel.udp_sockets import ends_of
from gateway.policy.engine import Policy
from gateway.policy.rule import CompiledRule
from gateway.routing import FlowTimeouts, OwnTraffic, Routing
from gateway.sniffing import SniffLimits
from gateway.udp.dispatcher import Datagrams
from gateway.udp.flow import UdpFlow, UdpSettings


class Leg:
    """Carries nothing; knows nobody."""

    sock = None

    def way(self, *_: object) -> Way:
        return Way(b"", None)

    def forget(self, _: object) -> None:
        pass

    def close(self) -> None:
        pass


class Way1:
    """An outbound; its legs do not know it."""

    name = "home"
    by_name = False
    carries_udp = True

    def carrier(self, *_: object) -> Way1:
        return self

    def associate(self, *_: object) -> Leg:
        return Leg()


def routing(outbound: Any) -> Routing:
    return Routing(
        Policy([CompiledRule(0, "rules[0] -> home", "home")]),
        {"home": outbound},
        FlowTimeouts(10, 1000, 100),
        SniffLimits(),
        FactFinder(),
    )


def begin(datagrams: Datagrams, far: str) -> UdpFlow:
    """A flow of one and the same socket of a client."""
    batch = Batch()
    batch.put(0, b"hello")
    source, destination = ip_address("192.168.20.5").packed, ip_address(far).packed
    flow = datagrams.arrived(ends_of(source, 40000, destination, 9), batch, 0)
    assert isinstance(flow, UdpFlow)
    return flow


def test_a_replaced_outbound_shares_its_identity_with_no_other_while_flows_go_by_it() -> None:
    """A client's legs are known by it: a new outbound must not come by a leg of the old one."""
    first = Way1()
    seen = weakref.ref(first)
    datagrams = Datagrams(
        SocketFactory(None),
        routing(first),
        UdpSettings(60, 10, 180, 100, 10, symmetric=False),
        OwnTraffic(),
        lambda _: None,
        lambda *_: None,  # type: ignore[arg-type, return-value]
    )
    old = begin(datagrams, "198.51.100.1")
    datagrams.routing = replace(datagrams.routing, outbounds={"home": Way1()})
    del first
    gc.collect()
    assert seen() is not None
    new = begin(datagrams, "198.51.100.2")
    assert new.leg is not old.leg
    assert begin(datagrams, "198.51.100.3").leg is new.leg
    old.close(CloseReason.IDLE_TIMEOUT)
    del old
    datagrams.recent.clear()
    gc.collect()
    assert seen() is None
