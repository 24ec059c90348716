"""What rules ask of a flow and its socket does not tell by itself: learnt here, and no more."""

from __future__ import annotations

from socket import SocketType
from typing import NamedTuple

from gateway.clock import WeekClock
from gateway.flow import Endpoint, FlowFacts, Protocol
from gateway.kernel.sockets import arrival_interface, interface_name
from gateway.policy.engine import Needs


class FactSources(NamedTuple):
    """Where facts come from; ``time_zone`` None is this machine's own."""

    time_zone: str | None = None


#: No rule asks for more than a socket tells, and this machine is where they are.
NO_NEEDS = Needs()
HERE = FactSources()


class FactFinder:
    """Learns facts, as far as a policy needs them."""

    def __init__(self, needs: Needs = NO_NEEDS, sources: FactSources = HERE) -> None:
        self._needs = needs
        self._clock = WeekClock(sources.time_zone)

    def of_stream(self, client: SocketType, source: Endpoint, destination: Endpoint) -> FlowFacts:
        """The facts of an accepted TCP flow."""
        needs = self._needs
        interface = arrival_interface(client) if needs.interface else ""
        return FlowFacts(Protocol.TCP, source, destination, interface)

    def of_datagram(self, source: Endpoint, destination: Endpoint, index: int) -> FlowFacts:
        """The facts of a flow by its first datagram, which came in on this interface."""
        needs = self._needs
        interface = interface_name(index) if needs.interface else ""
        return FlowFacts(Protocol.UDP, source, destination, interface)

    def now(self) -> int | None:
        """The minute of the week; None where no rule asks for the time."""
        return self._clock.minute() if self._needs.time else None
