"""What flows of every protocol are decided by, and how their ends are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, NamedTuple

from gateway.errors import UpstreamFailure
from gateway.facts import FactFinder
from gateway.flow import CloseReason, FlowFacts
from gateway.outbound.base import Outbound
from gateway.plan.addresses import Network
from gateway.policy.engine import Policy
from gateway.sniff.dns import question_name
from gateway.sniffing import SniffLimits

#: Closed flows that are kept to be looked at.
RECENT: Final = 1000
DNS_PORT: Final = 53

REASONS: Final = {
    UpstreamFailure.REFUSED: CloseReason.UPSTREAM_REFUSED,
    UpstreamFailure.UNREACHABLE: CloseReason.UPSTREAM_UNREACHABLE,
    UpstreamFailure.TIMEOUT: CloseReason.CONNECT_TIMEOUT,
    UpstreamFailure.DENIED: CloseReason.UPSTREAM_DENIED,
    UpstreamFailure.PROTOCOL: CloseReason.UPSTREAM_PROTOCOL,
    UpstreamFailure.RESET: CloseReason.UPSTREAM_RESET,
    UpstreamFailure.RESOURCES: CloseReason.NO_RESOURCES,
    UpstreamFailure.REJECTED: CloseReason.REJECTED,
}

#: What is said of a flow that is an outbound's own.
OWN_DIVERTED: Final = (
    "an outbound's own packets were diverted: another program changes their mark; have it leave"
    " our bits alone, or choose others (`marks.base`)"
)
#: What is said of a flow to a fake address.
NAMELESS: Final = "a fake address, of which nobody knows the name: ask for the name again"


class FlowTimeouts(NamedTuple):
    """Bounds on every wait of a flow, in seconds (``timeouts`` of the configuration)."""

    connect: float
    idle: float
    half_closed: float


@dataclass(frozen=True, slots=True)
class Routing:
    """What a reload swaps as a whole: the policy, and the outbounds of its decisions' ways.

    ``fakes``: prefixes of addresses that are nobody's, and stand for names.
    """

    policy: Policy
    outbounds: Mapping[str, Outbound]
    timeouts: FlowTimeouts
    sniff: SniffLimits
    finder: FactFinder
    fakes: tuple[Network, ...] = ()

    def is_nameless(self, facts: FlowFacts, way: str) -> bool:
        """Whether a flow goes to a fake address, and its outbound could ask for no name."""
        if not self.fakes or (self.outbounds[way].by_name and facts.name):
            return False
        address = ip_address(facts.destination.host)
        return any(address in prefix for prefix in self.fakes)


@dataclass(frozen=True, slots=True)
class OwnTraffic:
    """What tells the loop detector that a flow is one of our own.

    ``addresses`` of this machine, as text. ``diverted``: this machine's own traffic is
    diverted on purpose, so that an own address as source is no proof by itself.
    ``lookups``: the outbounds that need a name to be looked up, by that name (canonical);
    ``resolvers``: the name servers that this machine asks; ``lan``: its networks.
    """

    addresses: frozenset[str] = frozenset()
    diverted: bool = False
    lookups: Mapping[str, frozenset[str]] = field(default_factory=dict)
    resolvers: frozenset[str] = frozenset()
    lan: tuple[Network, ...] = ()

    def may_ask(self, facts: FlowFacts) -> bool:
        """Whether a flow may ask for the address of an outbound's server.

        That is of this machine, or of the name server that this machine asks.
        """
        if facts.destination.port != DNS_PORT or not self.lookups:
            return False
        return facts.source.host in self.addresses or facts.source.host in self.resolvers

    def missing_rule(self, facts: FlowFacts, outbound: str, query: bytes) -> str:
        """Which rule is missing where such a flow asks for it by that very outbound, else ""."""
        name = question_name(query)
        if name is None or outbound not in self.lookups.get(name, ()):
            return ""
        return (
            f"{facts.source.host} looks {name} up by outbound {outbound}, which needs that name"
            f" itself: put {{destination: {facts.destination.host}, port: {DNS_PORT}, to: direct}}"
            " before the rule, or give an address in `server:`"
        )
