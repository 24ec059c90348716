"""The data plane of one process: reactor, listeners, dispatcher, and the clock that ends flows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol

from gateway import logs
from gateway.blueprint import Blueprint, ListenOn
from gateway.control.running import FlowRecord
from gateway.dispatch import Dispatcher, Flow
from gateway.facts import FactFinder
from gateway.flow import CloseReason
from gateway.groups.standing import Standing
from gateway.icmp.flow import EchoFlow
from gateway.inbound.queue import Classifier
from gateway.inbound.tcp import TcpListener, open_listeners, require_free_port
from gateway.inbound.udp import UdpListener, open_udp_listeners, require_free_udp_port
from gateway.kernel.reactor import running_reactor
from gateway.kernel.sockets import SocketFactory
from gateway.kernel.tun import TunDevice
from gateway.outbound.base import Outbound
from gateway.outbound.board import Board, GroupReport
from gateway.outbound.group import GroupOutbound
from gateway.relay.tcp import Mover
from gateway.routing import FlowTimeouts, Routing
from gateway.tunnel import Tunnel, TunQueue
from gateway.udp.dispatcher import Datagrams
from gateway.udp.flow import UdpFlow, UdpSettings

log = logging.getLogger(__name__)

#: Records made at once: a few milliseconds' work, and less than a pipe holds when they are sent.
PAGE: Final = 256


AnyFlow = Flow | UdpFlow | EchoFlow


class Pipeline(Protocol):
    """The flows of a transport: live ones, oldest first, and some that have ended."""

    @property
    def live(self) -> Iterable[AnyFlow]:
        """They have not ended."""

    @property
    def live_count(self) -> int:
        """How many these are."""

    @property
    def recent(self) -> Sequence[AnyFlow]:
        """Those that have, the latest last."""


class DataPlane:
    """Carries flows, by the blueprint that was adopted last. Use it on a running event loop.

    Flows are numbered from ``first_id`` in steps of ``id_step``, so that several data planes
    never give two flows one number. ``index`` is which of them this is.
    """

    def __init__(
        self, plan: Blueprint, first_id: int = 1, id_step: int = 1, index: int = 0
    ) -> None:
        self._reactor = running_reactor()
        self._flow_log = logs.FlowLog(self._reactor.call_later)
        self._factory = SocketFactory(plan.bypass)
        self._factory.opened.wanted = plan.own.diverted
        self._mover = Mover(self._reactor)
        self._made: dict[str, tuple[object, Outbound]] = {}
        self._board = Board(self._reactor)
        self._groups: dict[str, GroupOutbound] = {}
        self._dispatcher = Dispatcher(
            self._mover,
            self._routing(plan),
            plan.own,
            self._factory.opened,
            self._ended,
            detect_loops=plan.detect_loops,
            flow_ids=(first_id, 3 * id_step),
        )
        self._datagrams = Datagrams(
            self._factory,
            self._dispatcher.routing,
            plan.udp,
            plan.own,
            self._ended,
            self._reactor.call_later,
            detect_loops=plan.detect_loops,
            flow_ids=(first_id + id_step, 3 * id_step),
        )
        self._echo_ids = (first_id + 2 * id_step, 3 * id_step)
        self._index = index
        self._classifiers: dict[int, Classifier] = {}  # by the number of their queue
        self._listeners: dict[_ListenerKey, tuple[TcpListener | UdpListener, ...]] = {}
        self._tunnel: Tunnel | None = None
        self._queue: TunQueue | None = None  # the tunnel's, where there is one

    def attach(self, fd: int, queues: int) -> None:
        """Read this queue of the TUN, one of so many; ``fd`` is ours from here on.

        Of a device that was made in the place of another, flows go on.
        """
        self._leave_queue()
        self._queue = TunQueue(TunDevice(fd), self._index, queues)
        if self._tunnel is not None:
            self._tunnel.replace(self._queue.device)

    def _leave_queue(self) -> None:
        if self._tunnel is None and self._queue is not None:
            self._queue.device.close()
        self._queue = None

    def listen(self, plan: Blueprint) -> None:
        """Have the listeners of this blueprint, beside those that are there.

        Raises ``CapabilityError`` where one cannot be opened.
        """
        where = plan.listen_on
        number = self._queue_number(plan)
        if plan.judgement is not None and number not in self._classifiers:
            finder = FactFinder(plan.policy.needs, plan.facts)
            self._classifiers[number] = Classifier(
                self._reactor, number, plan.policy, plan.judgement, finder
            )
        for key in _listeners(where):
            if key not in self._listeners:
                self._listeners[key] = self._open_listeners(key)
        if where.tun is not None and self._tunnel is None and self._queue is not None:
            self._tunnel = Tunnel(
                self._reactor,
                plan,
                self._dispatcher,
                self._datagrams,
                self._ended,
                self._echo_ids,
                self._queue,
            )
            self._choose_face(plan)

    def adopt(self, plan: Blueprint) -> None:
        """Decide new flows by this blueprint, and listen for no other; live flows go on."""
        logs.configure(plan.log_level, plan.log_format)
        self._factory.opened.wanted = plan.own.diverted
        self._dispatcher.routing = self._routing(plan)
        self._dispatcher.own = plan.own
        self._datagrams.routing = self._dispatcher.routing
        self._datagrams.settings = plan.udp
        self._datagrams.loops.own = plan.own
        self._adopt_judgement(plan)
        for listeners in self._listeners.values():
            self._tell_dscp(listeners)
        for key in self._listeners.keys() - _listeners(plan.listen_on):
            for listener in self._listeners.pop(key):
                listener.retire()
        self._adopt_tunnel(plan)

    def _adopt_tunnel(self, plan: Blueprint) -> None:
        if self._tunnel is None:
            return
        if plan.listen_on.tun is None:
            self._close_tunnel()
        else:
            self._tunnel.adopt(plan, self._dispatcher.routing)
        self._choose_face(plan)

    def _close_tunnel(self) -> None:
        if self._tunnel is not None:
            self._tunnel.close()
        else:
            self._leave_queue()
        self._tunnel = self._queue = None

    def _choose_face(self, plan: Blueprint) -> None:
        by_tun = self._tunnel if plan.listen_on.udp_by_tun else None
        self._datagrams.face = by_tun.face if by_tun else self._datagrams.by_sockets

    def retire(self) -> None:
        """Leave all that comes to other data planes; live flows go on."""
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.retire()
        self._listeners.clear()
        for classifier in self._classifiers.values():
            classifier.close()
        self._classifiers.clear()
        self._close_tunnel()
        for _, outbound in self._made.values():
            outbound.close()

    def _adopt_judgement(self, plan: Blueprint) -> None:
        wanted = self._queue_number(plan)
        for number in [*self._classifiers]:
            if number == wanted and plan.judgement is not None:
                self._classifiers[number].adopt(
                    plan.policy, plan.judgement, self._dispatcher.routing.finder
                )
            else:
                self._classifiers.pop(number).close()

    def _queue_number(self, plan: Blueprint) -> int:
        """Ours, of the queues that the data planes share; -1 for none."""
        return -1 if plan.judgement is None else plan.judgement.queue + self._index

    def _open_listeners(self, key: _ListenerKey) -> tuple[TcpListener | UdpListener, ...]:
        if key.mode == "udp":
            made = open_udp_listeners(self._reactor, key.port, self._datagrams, ipv6=key.ipv6)
            self._tell_dscp(made)
            return made
        return open_listeners(
            self._reactor,
            key.mode,
            key.port,
            self._dispatcher,
            ipv6=key.ipv6,
            congestion=key.congestion,
        )

    def _tell_dscp(self, listeners: Iterable[TcpListener | UdpListener]) -> None:
        """Have datagrams tell it where some rule asks; TCP's sockets always know."""
        for listener in listeners:
            if isinstance(listener, UdpListener):
                listener.tell_dscp(told=self._dispatcher.routing.policy.needs.dscp)

    def _routing(self, plan: Blueprint) -> Routing:
        made = {}
        for name, recipe in plan.outbounds.items():
            key = (recipe.func, recipe.args, recipe.keywords)
            known = self._made.get(name)
            # What says the same stays the same object, with what it has learnt of its server.
            made[name] = (
                known
                if known and known[0] == key
                else (key, recipe(reactor=self._reactor, factory=self._factory))
            )
        for name, known in self._made.items():
            if made.get(name) is not known:
                known[1].close()
        self._made = made
        outbounds = {name: outbound for name, (_, outbound) in made.items()}
        self._board.adopt(plan.groups, outbounds, plan.timeouts.connect)
        self._groups = {
            name: self._groups.get(name) or GroupOutbound(name, self._board) for name in plan.groups
        }
        return Routing(
            plan.policy,
            {**outbounds, **self._groups},
            plan.timeouts,
            plan.sniff,
            FactFinder(plan.policy.needs, plan.facts),
            plan.fakes,
        )

    async def time_flows(self) -> None:
        """End flows that take or stay too long; runs until it is cancelled."""
        while True:
            await asyncio.sleep(_tick(self._dispatcher.routing.timeouts, self._datagrams.settings))
            try:
                self._expire(time.monotonic())
            except Exception:
                # All others have time-outs too, and this process other work.
                log.exception("bug: a flow could not be ended in time; it is tried again")

    def _expire(self, now: float) -> None:
        self._dispatcher.expire_connects(now)
        self._dispatcher.expire_idle(now)
        self._datagrams.expire(now)
        if self._tunnel is not None:
            self._tunnel.expire(now)

    def _pipelines(self) -> Sequence[Pipeline]:
        """One for each transport."""
        echoes = () if self._tunnel is None else (self._tunnel.echoes,)
        return (self._dispatcher, self._datagrams, *echoes)

    def live_count(self) -> int:
        """How many flows have not closed."""
        return sum(pipeline.live_count for pipeline in self._pipelines())

    def flows(self, recent: int) -> Iterator[list[FlowRecord]]:
        """Live flows, then at most ``recent`` closed ones, latest first, a page at a time.

        All those of a busy house take long enough to be felt; between two pages whoever asks
        lets the loop turn. A flow that ends meanwhile is in its page as one that has ended.
        """
        pipelines = self._pipelines()
        yield from _pages([flow for pipeline in pipelines for flow in pipeline.live])
        if recent:
            flows: list[AnyFlow] = []
            for each in pipelines:
                flows += list(each.recent)[-recent:]
            closed = [record for page in _pages(flows) for record in page]
            closed.sort(key=lambda flow: flow.started + flow.duration_s, reverse=True)
            yield closed[:recent]

    def counters(self) -> dict[str, int]:
        """Totals since the start."""
        unsent = self._datagrams.batch.dropped + sum(
            listener.dropped
            for listeners in self._listeners.values()
            for listener in listeners
            if isinstance(listener, UdpListener)
        )
        # Sums of counters leave out what is zero.
        counters = self._dispatcher.counters + self._datagrams.counters
        raw = self._datagrams.reply_sockets.raw
        counters += Counter(udp_dropped_unsent=unsent, udp_replies_raw=raw)
        counters += self._board.counters
        for classifier in self._classifiers.values():
            counters += classifier.counters
        if self._tunnel is not None:
            counters += self._tunnel.counters
        return dict(counters)

    def without_udp(self) -> frozenset[str]:
        """The outbounds that have turned out to carry no UDP."""
        known = self._dispatcher.routing.outbounds.items()
        return frozenset(name for name, each in known if each.carries_udp is False)

    def stand(self, groups: Mapping[str, Standing], well: Collection[str]) -> None:
        """Have new flows go by the groups as they stand now; end those that are interrupted.

        ``well``: outbounds that have just been probed, and are.
        """
        before = self._board.standings
        self._board.stand(groups, well)
        self._datagrams.leave(self._board.is_down)
        if not self._board.interrupts(before):
            return
        live: list[Flow | UdpFlow] = [*self._dispatcher.live, *self._datagrams.live]
        for flow in live:
            decision, member = flow.decision, flow.member
            if decision and member and self._board.interrupted(before, decision.outbound, member):
                flow.close(CloseReason.SWITCHED)

    def group_report(self) -> GroupReport:
        """What flows have shown of groups and members."""
        return self._board.report()

    def close(self) -> None:
        """Stop listening and end every flow."""
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.close()
        for classifier in self._classifiers.values():
            classifier.close()
        self._dispatcher.close_all()
        self._close_tunnel()
        self._datagrams.close_all()
        for _, outbound in self._made.values():
            outbound.close()
        self._flow_log.write()
        self._mover.pipes.close()

    def _ended(self, flow: AnyFlow) -> None:
        asked_for = flow.decision is not None and flow.decision.log
        if asked_for or log.isEnabledFor(logging.INFO):
            self._flow_log.add(flow.record(), asked_for=asked_for)


def require_free(where: ListenOn) -> None:
    """Raise ``CapabilityError`` where somebody else listens there."""
    if where.mode != "tun":
        require_free_port(where.mode, where.port, ipv6=where.ipv6)
    if where.udp:
        require_free_udp_port(where.port, ipv6=where.ipv6)


def _pages(flows: Sequence[AnyFlow]) -> Iterator[list[FlowRecord]]:
    for at in range(0, len(flows), PAGE):
        yield [flow.record() for flow in flows[at : at + PAGE]]


class _ListenerKey(NamedTuple):
    """What listeners are shared by blueprints that have this in common."""

    mode: Literal["tproxy", "redirect", "udp"]
    port: int
    ipv6: bool
    congestion: str | None = None


def _listeners(where: ListenOn) -> set[_ListenerKey]:
    keys = set()
    if where.mode != "tun":
        keys.add(_ListenerKey(where.mode, where.port, where.ipv6, where.congestion))
    if where.udp:
        keys.add(_ListenerKey("udp", where.port, where.ipv6))
    return keys


def _tick(timeouts: FlowTimeouts, udp: UdpSettings) -> float:
    """How often to look (seconds): often enough that no time-out is late by a quarter."""
    shortest = min(timeouts.connect, timeouts.idle, timeouts.half_closed, *udp[:3])
    return min(max(shortest / 4, 0.05), 5.0)
