"""``direct``: to the original destination, by this machine's own sockets."""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from gateway.errors import UpstreamFailure
from gateway.flow import Endpoint, FlowFacts
from gateway.kernel.datagrams import Batch
from gateway.kernel.ping_sockets import PingSocket
from gateway.kernel.reactor import Reactor
from gateway.kernel.sockets import SocketFactory, SocketOptions, family_of
from gateway.kernel.udp_sockets import UdpSockets
from gateway.outbound.base import Attempt, ConnectAttempt, Requester, open_socket
from gateway.outbound.datagrams import Leg, LegOwner
from gateway.outbound.direct_udp import DirectLeg


@dataclass(frozen=True, slots=True)
class DirectOutbound:
    """Connects where the client wanted to.

    ``preserve_source``: from the client's own address (with a port of ours: with the
    client's port, conntrack would take both legs for one connection). ``refused``: address
    families (``AF_INET``, ``AF_INET6``) that have no way out now, and why.
    """

    name: str
    reactor: Reactor
    factory: SocketFactory
    options: SocketOptions
    preserve_source: bool = False
    refused: Mapping[int, str] = field(default_factory=dict)
    by_name: ClassVar = False

    def open(self, facts: FlowFacts, requester: Requester) -> Attempt | None:
        """Begin to connect to the flow's destination."""
        refusal = self.refused.get(family_of(facts.destination.host))
        if refusal is not None:
            requester.failed(UpstreamFailure.UNREACHABLE, refusal)
            return None
        options = self._options_for(facts.source)
        sock = open_socket(self.factory, facts.destination, options, requester)
        if sock is None:
            return None
        return ConnectAttempt(self.reactor, requester, sock)

    @property
    def carries_udp(self) -> bool:
        """Always."""
        return True

    def carrier(self, client: Endpoint, tried: Collection[str] = ()) -> Self:
        """Itself."""
        del client, tried
        return self

    def associate(self, family: int, client: Endpoint, owner: LegOwner, batch: Batch) -> Leg:
        """A socket of this machine. Raises ``OSError`` where there can be none."""
        refusal = self.refused.get(family)
        if refusal is not None:
            raise OSError(errno.ENETUNREACH, refusal)
        sockets, options = UdpSockets(self.factory), self._options_for(client)
        return DirectLeg(self.reactor, batch, owner, sockets, family, options)

    def ping(self, host: str) -> PingSocket:
        """A socket of this machine, with its address: replies to the client's are not ours."""
        refusal = self.refused.get(family_of(host))
        if refusal is not None:
            raise OSError(errno.ENETUNREACH, refusal)
        return PingSocket(self.factory, host, self.options)

    def close(self) -> None:
        """There is nothing that no flow uses."""

    def _options_for(self, client: Endpoint) -> SocketOptions:
        """What is asked of a socket that stands for a client's."""
        if not self.preserve_source:
            return self.options
        return replace(self.options, sources=(client.host,), transparent=True)
