"""What carries the flows of a TUN: the device's reader, and who takes each protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from gateway.blueprint import Blueprint
from gateway.dispatch import Dispatcher, Routing
from gateway.icmp.flow import EchoFlow
from gateway.inbound.tcp import TcpListener, open_all
from gateway.inbound.tun import TunReader, TunWriter
from gateway.inbound.tun_tcp import TunTcp
from gateway.kernel.reactor import Reactor
from gateway.kernel.tun import TunDevice, TunSettings
from gateway.tunnelled import Tunnelled
from gateway.udp.dispatcher import Datagrams
from gateway.wire.ip import TCP

#: Translations outlive the flows that they are of: a dispatcher's time-outs come first (s).
IDLE_S = 2 * 7 * 86400.0


class Tunnel:
    """The TUN of one data plane: one alone reads the device, whatever workers there are.

    A flow's packets would reach several queues, and so several processes: the kernel
    spreads them by a hash of addresses, which translation changes.
    """

    def __init__(
        self,
        reactor: Reactor,
        plan: Blueprint,
        streams: Dispatcher,
        datagrams: Datagrams,
        on_closed: Callable[[EchoFlow], None],
        flow_ids: tuple[int, int],
    ) -> None:
        """Raises ``CapabilityError`` where the device or its listeners cannot be had."""
        where = plan.listen_on
        assert where.tun is not None
        self.settings: TunSettings = where.tun
        self._counted: Counter[str] = Counter()
        device = TunDevice(where.tun.name)
        writer = TunWriter(device, self._counted)
        self._tunnelled = tunnelled = Tunnelled(
            reactor, plan, where.tun, writer, streams.routing, datagrams, on_closed, flow_ids
        )
        self.echoes = tunnelled.echoes
        self.face = tunnelled.face
        handlers = dict(tunnelled.handlers)
        self._listeners: tuple[TcpListener, ...] = ()
        tcp = TunTcp(
            (where.tun.ipv4, where.tun.ipv6), where.port, writer, self._counted, idle_s=IDLE_S
        )
        try:
            if where.mode == "tun":
                handlers[TCP] = tcp
                hosts = [str(where.tun.ipv4.ip), *([str(where.tun.ipv6.ip)] if where.ipv6 else [])]
                socks = open_all(hosts, where.port, transparent=False, congestion=where.congestion)
                self._listeners = tuple(TcpListener(reactor, sock, tcp, streams) for sock in socks)
        except BaseException:
            device.close()
            raise
        self._reader = TunReader(
            reactor, writer, handlers, tcp, self._counted, tunnelled.others, tunnelled.flush
        )

    @property
    def counters(self) -> Counter[str]:
        """Totals since it was made."""
        return self._counted + self._tunnelled.counters

    def adopt(self, plan: Blueprint, routing: Routing) -> None:
        """Go on by another blueprint."""
        self._tunnelled.adopt(plan, routing)

    def recover(self) -> None:
        """Where the device was removed and made again: go on with the new one, and all flows."""
        if self._reader.lost:
            self._reader.replace(TunDevice(self.settings.name))

    def expire(self, now: float) -> None:
        """Forget what has been quiet for too long. ``now``: ``time.monotonic``."""
        self._reader.expire(now)

    def close(self) -> None:
        """Listen no more, and leave the device."""
        for listener in self._listeners:
            listener.close()
        self._reader.close()
