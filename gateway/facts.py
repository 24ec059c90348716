"""What rules ask of a flow and its socket does not tell by itself: learnt here, and no more."""

from __future__ import annotations

from socket import SocketType
from typing import NamedTuple

from gateway.clock import WeekClock
from gateway.flow import Endpoint, FlowFacts, Protocol
from gateway.kernel.arrival import UNKNOWN_ARRIVAL, Arrival, arrival, interface_name
from gateway.kernel.lease_files import LeaseFiles
from gateway.kernel.neighbours import Neighbours, link_towards
from gateway.kernel.owners import Owners
from gateway.policy.engine import Needs


class FactSources(NamedTuple):
    """Where facts come from.

    ``time_zone`` None is this machine's own; without ``leases`` (paths), the usual places are
    looked at; ``own``: the addresses of this machine; ``tun``: the name of the device whose
    flows come from a LAN interface in truth.
    """

    time_zone: str | None = None
    leases: tuple[str, ...] = ()
    own: frozenset[str] = frozenset()
    tun: str = ""


#: No rule asks for more than a socket tells, and this machine is where they are.
NO_NEEDS = Needs()
HERE = FactSources()


class FactFinder:
    """Learns facts, as far as a policy needs them."""

    def __init__(self, needs: Needs = NO_NEEDS, sources: FactSources = HERE) -> None:
        self._needs = needs
        self._arrives = needs.interface or needs.mac or needs.dscp
        self._anything = self._arrives or needs.hostname or needs.owner
        self._clock = WeekClock(sources.time_zone)
        self._own = sources.own
        self._tun = sources.tun
        self._neighbours = Neighbours()
        self._leases = LeaseFiles(sources.leases)
        self._owners = Owners()
        self._names: dict[int, str] = {}

    def of_stream(self, client: SocketType, source: Endpoint, destination: Endpoint) -> FlowFacts:
        """The facts of an accepted TCP flow."""
        facts = FlowFacts(Protocol.TCP, source, destination)
        if not self._anything:
            return facts
        return self._with_needs(facts, arrival(client) if self._arrives else UNKNOWN_ARRIVAL)

    def of_datagram(
        self, source: Endpoint, destination: Endpoint, index: int, dscp: int | None = None
    ) -> FlowFacts:
        """The facts of a flow by its first datagram, which came in on this interface."""
        facts = FlowFacts(Protocol.UDP, source, destination)
        return self._with_needs(facts, Arrival(index, dscp)) if self._anything else facts

    def of_packet(
        self, protocol: Protocol, source: Endpoint, destination: Endpoint, came: Arrival, mac: str
    ) -> FlowFacts:
        """The facts of a flow of the LAN by its first packet, which this MAC has sent."""
        needs = self._needs
        return FlowFacts(
            protocol,
            source,
            destination,
            self._name(came.interface) if needs.interface else "",
            mac or None,
            self._leases.hostname(source.host, mac or None) if needs.hostname else None,
            came.dscp,
        )

    def now(self) -> int | None:
        """The minute of the week; None where no rule asks for the time."""
        return self._clock.minute() if self._needs.time else None

    def _name(self, index: int) -> str:
        """An interface's, asked for once: a finder lasts until the next change of the network."""
        if index not in self._names:
            self._names[index] = interface_name(index)
        return self._names[index]

    def _with_needs(self, facts: FlowFacts, came: Arrival) -> FlowFacts:
        needs, host = self._needs, facts.source.host
        through = not came.interface or self._name(came.interface) == self._tun
        if self._tun and self._arrives and through:
            came = came._replace(interface=0 if host in self._own else link_towards(host))
        mac = self._neighbours.mac(host, came.interface) if needs.mac else None
        return facts._replace(
            interface=self._name(came.interface) if needs.interface else "",
            mac=mac,
            hostname=self._leases.hostname(host, mac) if needs.hostname else None,
            dscp=came.dscp,
            owner=(
                self._owners.owner(facts.protocol, facts.source, facts.destination)
                if needs.owner and host in self._own
                else None
            ),
        )
