"""The data plane of one process: reactor, listeners, dispatcher, and the clock that ends flows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Final, NamedTuple

from gateway import logs
from gateway.assembly import Assembly
from gateway.config.schema import Timeouts
from gateway.control.running import FlowRecord
from gateway.dispatch import Dispatcher, Flow
from gateway.inbound.tcp import TcpListener, open_listeners
from gateway.kernel.guard import Finding
from gateway.kernel.reactor import Reactor
from gateway.kernel.sockets import SocketFactory
from gateway.relay.tcp import Mover
from gateway.wiring import own_traffic, routing

log = logging.getLogger(__name__)


class Safety(NamedTuple):
    """What keeps the gateway's own packets out of its diversion.

    Both are always on; the lab alone turns them off, one by one, to show the loop that
    each prevents.
    """

    mark: bool = True
    detect: bool = True


GUARDED: Final = Safety()


class DataPlane:
    """Carries flows, by the assembly that was adopted last. Use it on a running event loop."""

    def __init__(
        self, assembly: Assembly, found: Iterable[Finding], safety: Safety = GUARDED
    ) -> None:
        self._reactor = Reactor(asyncio.get_running_loop())
        self._factory = SocketFactory(assembly.marks.bypass if safety.mark else None)
        self._mover = Mover(self._reactor)
        self._dispatcher = Dispatcher(
            self._mover,
            routing(assembly, found, self._reactor, self._factory),
            own_traffic(assembly),
            _log_flow,
            detect_loops=safety.detect,
        )
        self._listeners: dict[tuple[str, int], tuple[TcpListener, ...]] = {}

    def listen(self, assembly: Assembly) -> None:
        """Have the listeners of this assembly, beside those that are there.

        Raises ``CapabilityError`` where one cannot be opened.
        """
        key = _key(assembly)
        if key not in self._listeners:
            self._listeners[key] = open_listeners(
                self._reactor,
                assembly.config.inbound.tcp,
                assembly.config.inbound.port,
                self._dispatcher,
                ipv6=assembly.host.has("ipv6"),
            )

    def adopt(self, assembly: Assembly, found: Iterable[Finding]) -> None:
        """Decide new flows by this assembly, and listen for no other; live flows go on."""
        self._dispatcher.routing = routing(assembly, found, self._reactor, self._factory)
        self._dispatcher.own = own_traffic(assembly)
        for key in self._listeners.keys() - {_key(assembly)}:
            for listener in self._listeners.pop(key):
                listener.close()

    async def time_flows(self) -> None:
        """End flows that take or stay too long; runs until it is cancelled."""
        while True:
            await asyncio.sleep(_tick(self._dispatcher.routing.timeouts))
            now = time.monotonic()
            self._dispatcher.expire_connects(now)
            self._dispatcher.expire_idle(now)

    @property
    def live_count(self) -> int:
        """Flows that have not closed."""
        return self._dispatcher.live_count

    def flows(self, recent: int) -> list[FlowRecord]:
        """Live flows, then at most ``recent`` closed ones, latest first."""
        closed = list(self._dispatcher.recent)[-recent:] if recent else []
        return [flow.record() for flow in (*self._dispatcher.live, *reversed(closed))]

    def counters(self) -> dict[str, int]:
        """Totals since the start."""
        return dict(self._dispatcher.counters)

    def close(self) -> None:
        """Stop listening and end every flow."""
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.close()
        self._dispatcher.close_all()
        self._mover.pipes.close()
        self._reactor.stop()


def _key(assembly: Assembly) -> tuple[str, int]:
    return assembly.config.inbound.tcp, assembly.config.inbound.port


def _log_flow(flow: Flow) -> None:
    if log.isEnabledFor(logging.INFO):
        log.info("flow", extra=logs.fields(**logs.flow_line(flow.record())))


def _tick(timeouts: Timeouts) -> float:
    """How often to look (seconds): often enough that no time-out is late by a quarter."""
    shortest = min(timeouts.connect, timeouts.idle, timeouts.half_closed)
    return min(max(shortest / 4, 0.05), 5.0)
