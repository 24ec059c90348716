"""Datagrams that come back to us: our own, those of a proxy behind us, and questions about it."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from gateway.breaker import DNS_PORT, DatagramBreaker, advice
from gateway.dispatch import OwnTraffic
from gateway.flow import Endpoint, FlowFacts
from gateway.sniff.dns import question_name
from gateway.udp.flow import UdpFlow


class Caught(NamedTuple):
    """Flows of a loop that are to end, and what is said of the newest."""

    flows: list[UdpFlow]
    detail: str


class LoopWatch:
    """Knows the legs of one data plane, and looks at each new flow."""

    def __init__(self, own: OwnTraffic) -> None:
        self.own = own
        self._legs: defaultdict[int, list[tuple[Endpoint, Endpoint | None]]] = defaultdict(list)
        self._breaker: DatagramBreaker[UdpFlow] = DatagramBreaker()

    def leg_opened(self, local: Endpoint, remote: Endpoint | None) -> None:
        """Know a leg's datagrams, should they come back."""
        self._legs[local.port].append((local, remote))

    def leg_closed(self, local: Endpoint, remote: Endpoint | None) -> None:
        """Forget it."""
        legs = self._legs[local.port]
        legs.remove((local, remote))
        if not legs:
            del self._legs[local.port]

    def is_own(self, source: Endpoint, destination: Endpoint) -> bool:
        """Whether a datagram is one that a leg sent."""
        if source.host not in self.own.addresses:
            return False
        if not self.own.diverted:
            return True
        return any(
            remote is None or remote == destination for _, remote in self._legs.get(source.port, ())
        )

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
