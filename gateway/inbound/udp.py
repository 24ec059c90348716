"""The UDP listeners: take what the kernel diverted, and find whose it is."""

from __future__ import annotations

from functools import partial
from socket import SocketType
from typing import Final, Protocol

from gateway.inbound.listening import open_all
from gateway.kernel.datagrams import SLOTS, Batch
from gateway.kernel.reactor import Reactor
from gateway.kernel.udp_sockets import open_udp_listener, tell_dscp

#: Batches taken per wake-up, so that a flood cannot starve what else there is to do.
ROUNDS: Final = 4

#: IPv4, IPv6: those of TPROXY, as for TCP.
LISTEN_ON: Final = ("127.0.0.1", "::1")


class Upgoing(Protocol):
    """A conversation, as its listener sees it."""

    def up(self, batch: Batch, first: int, last: int) -> None:
        """Take slots ``first`` up to ``last``."""


class Begun(Protocol):
    """A conversation that has begun with this wake-up."""

    def expect_answer(self) -> None:
        """Prepare for it."""


class Desk(Protocol):
    """Who knows the conversations: ``known`` by ``Batch.ends``.

    ``begun`` are those that are to prepare once all that has come is on its way.
    """

    known: dict[bytes, Upgoing]
    begun: list[Begun]

    def arrived(self, ends: bytes, batch: Batch, slot: int) -> Upgoing | None:
        """The conversation of a datagram whose ends are not known; None: it is left out."""


class UdpListener:
    """One listening socket in the reactor."""

    def __init__(self, reactor: Reactor, sock: SocketType, desk: Desk) -> None:
        self._reactor = reactor
        self._sock = sock
        self._desk = desk
        self._tells_dscp = False
        self._batch = Batch(tell_dscp(sock, told=False))
        reactor.watch(sock.fileno(), self)

    @property
    def dropped(self) -> int:
        """Datagrams that could not be sent onward."""
        return self._batch.dropped

    def tell_dscp(self, *, told: bool) -> None:
        """Have each datagram tell its DSCP, or not, as it takes time."""
        if told is not self._tells_dscp:
            self._tells_dscp = told
            dropped = self._batch.dropped
            self._batch = Batch(tell_dscp(self._sock, told=told))
            self._batch.dropped = dropped

    def on_ready(self, fd: int, events: int) -> None:
        """Take what waits, a batch at a time; equal neighbours go on together."""
        del events
        batch, known, arrived = self._batch, self._desk.known, self._desk.arrived
        for _ in range(ROUNDS):
            count = batch.receive(fd)
            first = 0
            following = batch.ends(0)
            while first < count:
                ends = following
                last = first + 1
                while last < count:
                    following = batch.ends(last)
                    if following != ends:
                        break
                    last += 1
                conversation = known.get(ends) or arrived(ends, batch, first)
                if conversation is not None:
                    conversation.up(batch, first, last)
                first = last
            if count < SLOTS:
                break
        else:
            self._reactor.again(fd)
        # The first datagrams of a conversation are under way: what its answer will take is made
        # while they are.
        if begun := self._desk.begun:
            self._desk.begun = []
            for new in begun:
                new.expect_answer()

    def abort(self) -> None:
        """Go on: what failed was one flow's fault, and the listener must outlive it."""
        self._reactor.again(self._sock.fileno())

    def retire(self) -> None:
        """Stop listening, because others do; what has come already is taken."""
        self.on_ready(self._sock.fileno(), 0)
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self._reactor.close(self._sock)


def require_free_udp_port(port: int, *, ipv6: bool) -> None:
    """Raise ``CapabilityError`` where somebody has the port."""
    for host in LISTEN_ON[: 2 if ipv6 else 1]:
        open_udp_listener(host, port, shared=False).close()


def open_udp_listeners(
    reactor: Reactor, port: int, desk: Desk, *, ipv6: bool
) -> tuple[UdpListener, ...]:
    """The listeners, one per family.

    Raises ``CapabilityError`` where one cannot be opened; none is left open then.
    """
    hosts = LISTEN_ON[: 2 if ipv6 else 1]
    opened = open_all(hosts, partial(open_udp_listener, port=port))
    return tuple(UdpListener(reactor, sock, desk) for sock in opened)
