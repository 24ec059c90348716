"""The pipeline of datagrams on one screen.

A client's socket has one ``Mapping`` for each outbound: one leg, whoever it talks to, so that
the world sees it behind one address (endpoint-independent mapping, RFC 4787), and anybody
may answer there. With ``nat: symmetric`` it has one for each far end, who alone may; so has
each far end that is asked for by name, as the address that answers is one the server chose.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from gateway.decision import Decision
from gateway.errors import UpstreamFailure
from gateway.flow import CloseReason, Endpoint, FlowFacts
from gateway.inbound.udp import LISTEN_ON, Begun, Upgoing
from gateway.kernel.datagrams import Batch, split_ends
from gateway.kernel.sockaddr import Address
from gateway.kernel.sockets import SocketFactory, family_of
from gateway.kernel.udp_sockets import ErrorReport, UdpSockets, read_ends
from gateway.outbound.base import Outbound, failure_of, target_of
from gateway.outbound.board import PATIENCE_S
from gateway.outbound.datagrams import Kept, Leg
from gateway.outbound.group import FINAL
from gateway.relay.udp import ReplySockets
from gateway.routing import NAMELESS, OWN_DIVERTED, REASONS, RECENT, OwnTraffic, Routing
from gateway.sniff.sighting import Sighting
from gateway.sniffing import Sniffing
from gateway.sniffing_udp import MOST_WAITING, UnheardFlow
from gateway.udp.face import by_sockets
from gateway.udp.flow import UdpFlow, UdpSettings
from gateway.udp.loops import LoopWatch
from gateway.udp.mapping import Mapping, MappingKey
from gateway.udp.refusal import Refusals
from gateway.udp.strangers import may_speak
from gateway.udp.table import FlowTable
from gateway.wire.icmp_error import IcmpError, from_wire

#: After so long (seconds) without an answer a member that is down is left.
UNHEARD_S: Final = 10.0
#: By how many ways of coming (interface, traffic class) a conversation's datagrams are known.
MOST_KEYS: Final = 16

#: Calls once, after so many seconds.
CallLater = Callable[[float, Callable[[], None]], asyncio.TimerHandle]


class Datagrams:
    """Takes datagrams through the pipeline; owns the conversations until they end."""

    def __init__(
        self,
        factory: SocketFactory,
        routing: Routing,
        settings: UdpSettings,
        own: OwnTraffic,
        on_closed: Callable[[UdpFlow], None],
        call_later: CallLater,
        *,
        detect_loops: bool = True,
        flow_ids: tuple[int, int] = (1, 1),
    ) -> None:
        sockets = UdpSockets(factory)
        self.routing = routing
        self.settings = settings
        self.loops = LoopWatch(own, factory.opened, call_later, self._go_on)
        self.reply_sockets = ReplySockets(sockets.open_reply)
        self.by_sockets = by_sockets(self.reply_sockets, sockets)
        #: Of flows that begin from now on.
        self.face = self.by_sockets
        self.batch = Batch()
        self.known: dict[bytes, Upgoing] = {}
        self.begun: list[Begun] = []
        self.counters: Counter[str] = Counter()
        self.recent: deque[UdpFlow] = deque(maxlen=RECENT)
        self._on_closed = on_closed
        self._call_later = call_later
        self._detect_loops = detect_loops
        self._mappings: dict[MappingKey, Mapping] = {}
        self._flows = FlowTable()
        self._refusals = Refusals(self, self.known)
        self._sniffing = Sniffing(call_later, self.counters, self._sniffed)
        self._next_id, self._id_step = flow_ids

    @property
    def live(self) -> Iterable[UdpFlow]:
        """Conversations that have not ended, oldest first."""
        return self._flows.all()

    @property
    def live_count(self) -> int:
        """How many have not ended."""
        return len(self._flows)

    # --- a datagram that belongs to nothing yet ---------------------------------------------

    def arrived(self, ends: bytes, batch: Batch, slot: int) -> Upgoing | None:
        """Decide whose it is, or what becomes of it."""
        found = read_ends(ends)
        if found is None or found.destination.host in LISTEN_ON:
            self.counters["refused_not-diverted"] += 1
            return None
        source, destination, index, dscp = found
        flow = self._flows.find(source, destination)
        if flow is not None:
            if len(flow.keys) < MOST_KEYS:
                self._know(ends, flow)
            return flow
        policy, finder = self.routing.policy, self.routing.finder
        facts = finder.of_datagram(source, destination, index, dscp)
        now = finder.now()
        if self._detect_loops and self.loops.is_own(source, destination):
            flow = self._flow(facts, policy.settle(facts, now), Address(split_ends(ends)[0]))
            flow.detail = OWN_DIVERTED
            flow.close(CloseReason.LOOP)
            return None
        answer = policy.decide(facts, now)
        first = next(batch.datagrams(slot))
        if isinstance(answer, Decision) and not self._wants_name(answer):
            return self._begin(ends, facts, answer, first)
        if not self._may_wait(destination.port):
            return self._begin(ends, facts, policy.settle(facts, now), first)
        unheard = self.known[ends] = UnheardFlow(self, ends, facts)
        self._sniffing.begin(unheard, self.routing.sniff)
        return unheard

    def heard(self, flow: UnheardFlow, seen: Sighting) -> None:
        """Decide a flow by its client's first datagrams, and send onward what was kept of them."""
        self._sniffing.learned(flow, seen)

    def _wants_name(self, decision: Decision) -> bool:
        """Whether the outbound is asked by name, which a QUIC client's first datagrams tell."""
        return decision.sniff and self.routing.outbounds[decision.way].by_name

    def _may_wait(self, port: int) -> bool:
        return self.routing.sniff.covers(port) and len(self._sniffing) < MOST_WAITING

    def _sniffed(self, unheard: UnheardFlow, seen: Sighting) -> None:
        facts = unheard.facts._replace(name=seen.name, sniffed=seen.protocol)
        flow = self._flows.find(facts.source, facts.destination)
        if flow is not None:
            # Meanwhile the far end has spoken by itself, or the client with another traffic class.
            self._know(unheard.ends, flow)
        else:
            answer = self.routing.policy.settle(facts, self.routing.finder.now())
            flow = self._begin(unheard.ends, facts, answer, unheard.first)
        unheard.onward = flow
        for datagram in unheard.kept:
            if flow is not None:
                flow.up_one(self.batch, datagram)

    def answered_by_stranger(self, mapping: Mapping, remote: Endpoint) -> UdpFlow | None:
        """The conversation of a far end that speaks first; None: it is not heard."""
        client = mapping.key.client
        first = next(iter(mapping.flows.values()), None)
        if first is None or mapping.leg is None:
            return None
        facts = mapping.facts._replace(destination=remote, name=None, sniffed=None)
        if (
            mapping.key.far is not None
            or self._flows.find(client, remote)
            or not self._flows.has_room(client.host, self.settings)  # it takes nobody's place
            or not may_speak(facts, self.routing, self.loops.own)
        ):
            self.dropped("stranger")
            return None
        flow = self._flow(facts, mapping.decision, first.client)
        if flow.reason is None:
            self._join(flow, mapping, mapping.leg)
        return flow if flow.reason is None else None

    def _begin(
        self, ends: bytes, facts: FlowFacts, decision: Decision, first: bytes | memoryview
    ) -> UdpFlow | None:
        """A decided conversation, with its first datagram; None where it has ended at once."""
        flow = self._flow(facts, decision, Address(split_ends(ends)[0]))
        self._know(ends, flow)
        caught = self.loops.caught(flow, bytes(first)) if self._detect_loops else None
        if caught is None and self.routing.is_nameless(facts, decision.way):
            flow.detail = NAMELESS
            self._close_refused(flow, CloseReason.FAKE_ADDRESS)
            return None
        if caught is None:
            if flow.leg is None:  # it is not held back
                self._open(flow, self.routing.outbounds[decision.way])
            return flow if flow.reason is None else None
        flow.detail = caught.detail
        for looping in caught.flows:
            self._close_refused(looping, CloseReason.LOOP)
        return flow if flow.reason is None else None

    def _go_on(self, flow: UdpFlow, kept: Iterable[bytes]) -> None:
        """Open a flow that was held back."""
        outbound = self.routing.outbounds.get(flow.decision.way)
        if outbound is None:  # a reload has taken it away meanwhile
            self._close_refused(flow, CloseReason.REJECTED)
            return
        self._open(flow, outbound)
        for datagram in kept:
            flow.up_one(self.batch, datagram)

    def _know(self, ends: bytes, flow: UdpFlow) -> None:
        self.known[ends] = flow
        flow.keys.append(ends)

    def _flow(self, facts: FlowFacts, decision: Decision, client: Address) -> UdpFlow:
        self._flows.make_room(facts.source.host, self.settings)
        flow = UdpFlow(self, self._next_id, facts, decision, client)
        self._next_id += self._id_step
        self.counters["udp_flows"] += 1
        self._flows.add(flow)
        return flow

    def _open(self, flow: UdpFlow, outbound: Outbound, tried: frozenset[str] = frozenset()) -> None:
        """Have a flow carried; not by those that it was ``tried`` by, if there are others."""
        source, destination = flow.facts.source, flow.facts.destination
        carrier = outbound.carrier(source, tried)
        if carrier is not outbound:
            flow.member = carrier.name
        if carrier.carries_udp is False:
            flow.detail = "the outbound carries no UDP"
            self._close_refused(flow, CloseReason.REJECTED)
            return
        family = family_of(destination.host)
        target = target_of(flow.facts, by_name=carrier.by_name)
        # Who answers for a name is known by nothing but that it answers there.
        named = target != destination
        far = destination if named or self.settings.symmetric else None
        key = MappingKey(source, id(carrier), family, far)
        mapping = self._mappings.get(key)
        if mapping is None:
            asked = target if named else None
            mapping = Mapping(self, key, carrier, flow.facts, flow.decision, asked)
            mapping.member = flow.member
            self._mappings[key] = mapping
        mapping.tried |= {carrier.name, *tried}
        if mapping.leg is None:
            mapping.flows[destination] = flow
            flow.mapping = mapping
            try:
                leg = carrier.associate(family, source, mapping, self.batch)
            except OSError as error:
                mapping.leg_failed(failure_of(error), error.strerror or str(error))
                return
            if flow.mapping is not mapping or leg is None:  # it has failed
                return
            mapping.leg = leg
            self.begun.append(flow)
            if carrier is not outbound and leg.sock is None:
                self._call_later(PATIENCE_S, partial(self._lose_patience, mapping, leg))
        self._join(flow, mapping, mapping.leg)

    def _join(self, flow: UdpFlow, mapping: Mapping, leg: Leg) -> None:
        flow.mapping = mapping
        flow.member = flow.member or mapping.member
        flow.leg = leg
        mapping.flows[flow.facts.destination] = flow
        flow.way = leg.way(mapping.target or flow.facts.destination, flow)

    # --- ends ------------------------------------------------------------------------------

    def closed(self, flow: UdpFlow) -> None:
        """Forget a conversation that has ended; the last of a mapping takes the leg along."""
        self._flows.remove(flow)
        for key in flow.keys:
            self.known.pop(key, None)
        mapping, flow.mapping = flow.mapping, None  # closed flows are kept to be looked at
        if mapping is not None:
            mapping.flows.pop(flow.facts.destination, None)
            if mapping.leg is not None:
                mapping.leg.forget(flow)
            if not mapping.flows:
                self._end_mapping(mapping)
        self.counters[f"udp_closed_{flow.reason}"] += 1
        self.counters["bytes_up"] += flow.bytes_up
        self.counters["bytes_down"] += flow.bytes_down
        self.recent.append(flow)
        self._on_closed(flow)

    def mapping_failed(
        self, mapping: Mapping, failure: UpstreamFailure, detail: str, kept: Sequence[Kept]
    ) -> None:
        """Carry the flows of a mapping whose leg is gone on by the next member of their group.

        Where there is none, they end, and their client is told.
        """
        flows = list(mapping.flows.values())
        by_way = {flow.way: flow for flow in flows}
        mapping.flows.clear()
        self._end_mapping(mapping)
        for flow in flows:
            flow.mapping = flow.leg = None
            outbound = self._another(flow, failure, mapping.tried)
            if outbound is None:
                if flow.member and failure not in FINAL:
                    self.counters["group_exhausted"] += 1
                flow.detail = detail
                self._close_refused(flow, REASONS[failure])
            else:
                self.counters["group_failovers"] += 1
                self._open(flow, outbound, mapping.tried)
        for way, datagram in kept:
            sender = by_way.get(way)
            if sender is not None:
                sender.bytes_up -= len(datagram)  # counted when it was kept
                sender.up_one(self.batch, datagram)

    def _lose_patience(self, mapping: Mapping, leg: Leg) -> None:
        """Have the next member carry what one has kept that is not there yet, if there is one."""
        flow = next(iter(mapping.flows.values()), None)
        if flow is None or mapping.leg is not leg or leg.sock is not None:
            return
        if self._another(flow, UpstreamFailure.TIMEOUT, mapping.tried) is not None:
            leg.give_up("the upstream did not answer in time")

    def leave(self, is_down: Callable[[str, str], bool]) -> None:
        """Have flows go on otherwise that a member which is down leaves without an answer.

        ``is_down`` is asked of a group and its member.
        """
        silent = time.monotonic() - UNHEARD_S
        for mapping in tuple(self._mappings.values()):
            if (
                mapping.member
                and all(flow.unheard_since < silent for flow in mapping.flows.values())
                and is_down(mapping.decision.outbound, mapping.member)
            ):
                mapping.close()
                mapping.leg_failed(UpstreamFailure.TIMEOUT, f"{mapping.member} is down")

    def _another(
        self, flow: UdpFlow, failure: UpstreamFailure, tried: frozenset[str]
    ) -> Outbound | None:
        """The outbound of a flow, if it has a member by which none was ``tried``."""
        outbound = self.routing.outbounds.get(flow.decision.way)
        if outbound is None or failure in FINAL:
            return None
        return None if outbound.carrier(flow.facts.source, tried).name in tried else outbound

    def _end_mapping(self, mapping: Mapping) -> None:
        if self._mappings.get(mapping.key) is mapping:
            del self._mappings[mapping.key]
        mapping.close()

    def _close_refused(self, flow: UdpFlow, reason: CloseReason) -> None:
        """End a flow, and answer what its client sends in the next moment."""
        keys = flow.keys
        flow.close(reason)
        self.refused(flow.facts)
        self._refusals.add(flow.facts, keys)

    def expire(self, now: float) -> None:
        """End what has been quiet too long. ``now``: ``time.monotonic``."""
        settings = self.settings
        for flow in self.live:
            if not flow.moved(now) and now - flow.quiet_since >= flow.idle_limit(settings):
                flow.close(CloseReason.IDLE_TIMEOUT)
        self._refusals.expire(now)

    def close_all(self) -> None:
        """End every conversation, because the gateway ends."""
        for flow in self.live:
            flow.close(CloseReason.SHUTDOWN)
        self._sniffing.stop()

    # --- what clients are told -----------------------------------------------------------------

    def pass_on(self, mapping: Mapping, report: ErrorReport) -> None:
        """Tell the client what the network said of a datagram of its."""
        flow = mapping.flows.get(report.remote)
        error = from_wire(report.family, report.kind, report.code)
        if flow is not None and error is not None:
            self.tell(error, flow.facts, report.mtu, report.host)

    def refused(self, facts: FlowFacts) -> None:
        """Tell a client whose conversation was refused a moment ago."""
        self.counters["udp_refused"] += 1
        self.tell(IcmpError.PORT_UNREACHABLE, facts)

    def dropped(self, why: str) -> None:
        """Count a datagram that was left out."""
        self.counters[f"udp_dropped_{why}"] += 1

    def tell(self, error: IcmpError, facts: FlowFacts, mtu: int = 0, host: str = "") -> None:
        """Send the client an ICMP error, in the name of ``host`` or else of the far end."""
        client, remote = facts.source, facts.destination
        said = self.face.errors.tell_of_datagram(error, client, remote, mtu, host)
        self.counters["udp_icmp_sent" if said else "udp_icmp_unsent"] += 1
