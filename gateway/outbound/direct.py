"""``direct``: to the original destination, by this machine's own sockets."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gateway.flow import FlowFacts
from gateway.kernel.reactor import Reactor
from gateway.kernel.sockets import Egress, SocketFactory
from gateway.outbound.base import Attempt, ConnectAttempt, Requester, open_socket


@dataclass(frozen=True, slots=True)
class DirectOutbound:
    """Connects where the client wanted to.

    ``preserve_source``: from the client's own address (with a port of ours: with the
    client's port, conntrack would take both legs for one connection).
    """

    name: str
    reactor: Reactor
    factory: SocketFactory
    egress: Egress
    preserve_source: bool = False

    def open(self, facts: FlowFacts, requester: Requester) -> Attempt | None:
        """Begin to connect to the flow's destination."""
        egress = self.egress
        if self.preserve_source:
            egress = replace(egress, source=facts.source.host, transparent=True)
        sock = open_socket(self.factory, facts.destination, egress, requester)
        if sock is None:
            return None
        return ConnectAttempt(self.reactor, requester, sock, facts.destination)
