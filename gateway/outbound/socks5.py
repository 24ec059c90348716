"""``socks5``: through a SOCKS5 server (RFC 1928, RFC 1929)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from socket import SocketType
from typing import Final, Self

from gateway.flow import Endpoint, FlowFacts
from gateway.kernel.datagrams import Batch
from gateway.kernel.reactor import Reactor
from gateway.kernel.sockets import SocketFactory, SocketOptions, family_of
from gateway.kernel.udp_sockets import UdpSockets
from gateway.outbound.association import Association
from gateway.outbound.base import Attempt, EchoRefusal, Requester, open_socket, target_of
from gateway.outbound.datagrams import Leg, LegOwner
from gateway.outbound.handshake import OnAccepted, Socks5Attempt
from gateway.outbound.manners import Handshake, Manners, Trial
from gateway.outbound.pool import Pool
from gateway.outbound.spares import Spares
from gateway.wire.socks5 import UDP_ASSOCIATE, ClientHandshake, Credentials

#: An association for datagrams from anywhere: the server may be behind a translator, and
#: would not know the address that we have.
ANYTHING: Final = Endpoint("0.0.0.0", 0)  # noqa: S104


@dataclass(slots=True)
class Socks5Outbound:
    """One SOCKS5 server, at one address.

    ``warm``: keep connections ready for flows to come. ``by_name``: ask for the name that the
    client's first bytes told, which the server then resolves.

    ``udp``: whether it grants UDP associations, None: that is found out; ``warm_udp``: at once,
    by one that is then kept ready.
    """

    name: str
    reactor: Reactor
    factory: SocketFactory
    server: Endpoint
    options: SocketOptions
    credentials: Credentials | None = None
    handshake: Handshake = "strict"
    warm: bool = False
    by_name: bool = False
    udp: bool | None = None
    warm_udp: bool = False
    manners: Manners = field(default_factory=Manners)
    pool: Pool | None = field(init=False, default=None, repr=False)
    spares: Spares = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Begin with an empty pool."""
        self.spares = Spares(
            self.reactor,
            self.server,
            self._connect_for,
            partial(ClientHandshake, ANYTHING, self.credentials, command=UDP_ASSOCIATE),
            self._open_relay,
            self.udp,
        )
        if self.warm_udp:
            self.spares.prepare()
        if self.warm:
            opener = partial(self._connect, None, pipelined=False)
            self.pool = Pool(self.reactor, opener, self._open)

    def open(self, facts: FlowFacts, requester: Requester) -> Attempt | None:
        """Begin to connect to the server, and through it to the flow's destination."""
        target = target_of(facts, by_name=self.by_name)
        if self.pool is None:
            return self._open(target, requester)
        return self.pool.open(target, requester)

    @property
    def carries_udp(self) -> bool | None:
        """Whether the server grants UDP associations."""
        return self.spares.carries

    def carrier(self, client: Endpoint, tried: Collection[str] = ()) -> Self:
        """Itself."""
        del client, tried
        return self

    def associate(self, family: int, client: Endpoint, owner: LegOwner, batch: Batch) -> Leg:
        """An association of its own for the client."""
        del family, client
        leg = Association(self.reactor, batch, owner, self.spares.take)
        leg.open()
        return leg

    def ping(self, host: str) -> EchoRefusal:
        """SOCKS5 has no request for it (RFC 1928 section 4)."""
        del host
        return EchoRefusal.NOT_CARRIED

    def close(self) -> None:
        """Close the connections that wait for a flow."""
        self.spares.close()
        if self.pool is not None:
            self.pool.close()

    def _open_relay(self, relay: Endpoint) -> SocketType:
        return UdpSockets(self.factory).open(family_of(relay.host), self.options, relay)

    def _open(self, target: Endpoint, requester: Requester) -> Attempt | None:
        on_accepted = None if self.pool is None else self.pool.measured
        if self.handshake == "auto" and self.manners.unknown:
            return Trial.begin(
                self.manners,
                self.reactor,
                requester,
                lambda runner, pipelined: self._connect(
                    target, runner, on_accepted, pipelined=pipelined
                ),
            )
        pipelined = self.handshake == "pipelined" or self.manners.pipelining is True
        return self._connect(target, requester, on_accepted, pipelined=pipelined)

    def _connect(
        self,
        target: Endpoint | None,
        requester: Requester,
        on_accepted: OnAccepted | None,
        *,
        pipelined: bool,
    ) -> Socks5Attempt | None:
        handshake = ClientHandshake(target, self.credentials, pipelined=pipelined)
        return self._connect_for(requester, handshake, on_accepted)

    def _connect_for(
        self,
        requester: Requester,
        handshake: ClientHandshake,
        on_accepted: OnAccepted | None = None,
    ) -> Socks5Attempt | None:
        sock = open_socket(self.factory, self.server, self.options, requester)
        if sock is None:
            return None
        return Socks5Attempt(
            self.reactor,
            requester,
            sock,
            handshake,
            on_accepted,
            eager=self.handshake == "pipelined",
        )
