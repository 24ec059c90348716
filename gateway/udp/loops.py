"""Datagrams that come back to us: our own, those of a proxy behind us, and questions about it."""

from __future__ import annotations

from socket import SOCK_DGRAM
from typing import NamedTuple

from gateway.breaker import DNS_PORT, DatagramBreaker, advice
from gateway.flow import Endpoint, FlowFacts
from gateway.kernel.own_sockets import OwnSockets
from gateway.routing import OwnTraffic
from gateway.sniff.dns import question_name
from gateway.udp.flow import UdpFlow


class Caught(NamedTuple):
    """Flows of a loop that are to end, and what is said of the newest."""

    flows: list[UdpFlow]
    detail: str


class LoopWatch:
    """Looks at each new flow of one data plane, of which it knows the sockets."""

    def __init__(self, own: OwnTraffic, opened: OwnSockets) -> None:
        self.own = own
        self._opened = opened
        self._breaker: DatagramBreaker[UdpFlow] = DatagramBreaker()

    def is_own(self, source: Endpoint, destination: Endpoint) -> bool:
        """Whether a datagram is one that a leg sent."""
        if source.host not in self.own.addresses:
            return False
        return not self.own.diverted or self._opened.sent(SOCK_DGRAM, source, destination)

    def caught(self, flow: UdpFlow, first: bytes) -> Caught | None:
        """What to end now that this flow has begun, with this datagram; mostly nothing."""
        through_itself = self._asks_for_its_way(flow.facts, flow.decision.outbound, first)
        if through_itself:
            return Caught([flow], through_itself)
        loop = self._breaker.trips(flow, first)
        if not loop:
            return None
        return Caught(loop, advice(flow, own=flow.facts.source.host in self.own.addresses))

    def _asks_for_its_way(self, facts: FlowFacts, outbound: str, first: bytes) -> str:
        """The missing rule, where the address of a way's server is asked for by that very way.

        By this machine, or by the name server that this machine asks.
        """
        own, source = self.own, facts.source.host
        if facts.destination.port != DNS_PORT or not own.lookups:
            return ""
        if source not in own.addresses and source not in own.resolvers:
            return ""
        name = question_name(first)
        if name is None or outbound not in own.lookups.get(name, ()):
            return ""
        resolver = facts.destination.host
        return (
            f"{source} looks {name} up by outbound {outbound}, which needs that name itself: put"
            f" {{destination: {resolver}, port: 53, to: direct}} before the rule, or give an"
            " address in `server:`"
        )
