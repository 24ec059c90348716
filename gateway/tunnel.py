"""What carries the flows of a TUN: the device's reader, and who takes each protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from socket import SocketType
from typing import NamedTuple

from gateway.blueprint import Blueprint, ListenOn
from gateway.dispatch import Dispatcher
from gateway.icmp.flow import EchoFlow
from gateway.inbound.listening import open_all
from gateway.inbound.tcp import TcpListener
from gateway.inbound.tun import PacketHandler, TunReader, TunWriter
from gateway.inbound.tun_errors import TunErrors
from gateway.inbound.tun_nat import numbers_of
from gateway.inbound.tun_tcp import TunTcp
from gateway.kernel.reactor import Reactor
from gateway.kernel.sockets import local_endpoint, open_listener
from gateway.kernel.tun import TunDevice, TunSettings
from gateway.kernel.tun_entrance import TunEntrance
from gateway.routing import Routing
from gateway.tunnelled import Tunnelled
from gateway.udp.dispatcher import Datagrams
from gateway.wire.ip import ICMP, ICMPV6, TCP, UDP

#: Translations outlive the flows that they are of: a dispatcher's time-outs come first (s).
IDLE_S = 2 * 7 * 86400.0


class TunQueue(NamedTuple):
    """A queue of the device, and which it is of how many."""

    device: TunDevice
    number: int
    queues: int


class Tunnel:
    """The TUN of one data plane: its queue of the device, of which it reads all of a flow.

    Each has listeners of its own, on ports that the kernel chooses: what one of them accepts,
    no other could tell from where it came.
    """

    def __init__(
        self,
        reactor: Reactor,
        plan: Blueprint,
        streams: Dispatcher,
        datagrams: Datagrams,
        on_closed: Callable[[EchoFlow], None],
        flow_ids: tuple[int, int],
        queue: TunQueue,
    ) -> None:
        """Raises ``CapabilityError`` where its listeners cannot be had."""
        where = plan.listen_on
        assert where.tun is not None
        self.settings: TunSettings = where.tun
        self._counted: Counter[str] = Counter()
        writer = TunWriter(queue.device, self._counted)
        self._tunnelled = tunnelled = Tunnelled(
            reactor, plan, where.tun, writer, streams.routing, datagrams, on_closed, flow_ids
        )
        self.echoes = tunnelled.echoes
        self.face = tunnelled.face
        self._listeners: tuple[TcpListener, ...] = ()
        interfaces = (where.tun.ipv4, where.tun.ipv6)
        socks = _open_listeners(where)
        ports = [local_endpoint(sock).port for sock in socks]
        tcp = TunTcp(
            interfaces,
            (ports[0], ports[-1]) if ports else (0, 0),
            numbers_of(queue.number, queue.queues),
            writer,
            self._counted,
            refused=tunnelled.refuse,
            idle_s=IDLE_S,
        )
        errors = TunErrors(tcp, tunnelled.paths, writer, self._counted, tunnelled.echoes)
        handlers: dict[int, PacketHandler] = {UDP: tunnelled.udp, ICMP: errors, ICMPV6: errors}
        if socks:
            handlers[TCP] = tcp
            self._listeners = tuple(TcpListener(reactor, sock, tcp, streams) for sock in socks)
        self._reader = TunReader(
            reactor,
            writer,
            handlers,
            tcp,
            self._counted,
            tunnelled.others,
            tunnelled.udp.flush,
            repeat=tunnelled.echoes.repeat,
            entrance=TunEntrance(where.tun.name) if queue.queues > 1 else None,
        )

    @property
    def counters(self) -> Counter[str]:
        """Totals since it was made."""
        return self._counted + self._tunnelled.counters

    def adopt(self, plan: Blueprint, routing: Routing) -> None:
        """Go on by another blueprint."""
        self._tunnelled.adopt(plan, routing)

    def replace(self, device: TunDevice) -> None:
        """Go on with this queue, and all flows: the device was removed, and made again."""
        self._reader.replace(device)

    def expire(self, now: float) -> None:
        """Forget what has been quiet for too long. ``now``: ``time.monotonic``."""
        self._reader.expire(now)

    def close(self) -> None:
        """Listen no more, and leave the device."""
        for listener in self._listeners:
            listener.close()
        self._reader.close()


def _open_listeners(where: ListenOn) -> list[SocketType]:
    """Those of TCP in the device, of IPv4 and then IPv6; none where it takes another way."""
    if where.mode != "tun" or where.tun is None:
        return []
    hosts = [str(where.tun.ipv4.ip), *([str(where.tun.ipv6.ip)] if where.ipv6 else [])]
    opener = partial(
        open_listener, port=0, transparent=False, shared=False, congestion=where.congestion
    )
    return open_all(hosts, opener)
