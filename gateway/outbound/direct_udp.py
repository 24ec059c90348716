"""A leg of ``direct``: datagrams to where the client sent them, from a socket of this machine."""

from __future__ import annotations

import socket

from gateway.flow import Endpoint
from gateway.kernel.datagrams import Batch, Way
from gateway.kernel.reactor import Reactor
from gateway.kernel.sockaddr import Address, endpoint_of, sockaddr
from gateway.kernel.sockets import SocketOptions
from gateway.kernel.udp_sockets import UdpSockets
from gateway.outbound.datagrams import Leg, LegOwner, Route


class DirectLeg(Leg):
    """One unconnected socket."""

    __slots__ = ("_name_bytes",)

    def __init__(
        self,
        reactor: Reactor,
        batch: Batch,
        owner: LegOwner,
        sockets: UdpSockets,
        family: int,
        options: SocketOptions,
    ) -> None:
        """Raises ``OSError`` where there can be no such socket."""
        super().__init__(reactor, batch, owner)
        self._name_bytes = 28 if family == socket.AF_INET6 else 16
        self._open_for_use(sockets.open(family, options))

    def way(self, target: Endpoint, route: Route) -> Way:
        """By its address."""
        address = Address(sockaddr(target))
        self.routes[address.raw] = route
        return Way(b"", address)

    def _deliver(self, count: int) -> None:
        batch, routes = self._batch, self.routes
        slot = 0
        while slot < count:
            name = batch.name(slot, self._name_bytes)
            end = slot + 1
            while end < count and batch.name(end, self._name_bytes) == name:
                end += 1
            route = routes.get(name)
            if route is None:
                route = self._owner.stranger(endpoint_of(name))
                if route is not None:
                    routes[name] = route
            if route is not None:
                route.down(batch, slot, end, 0)
            slot = end
