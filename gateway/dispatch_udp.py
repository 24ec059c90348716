"""The pipeline of datagrams: diverted, decided, sent onward, answered, and let go when quiet.

A client's socket has one ``Mapping`` for each outbound: one leg, whoever it talks to, so that
the world sees it behind one address (endpoint-independent mapping, RFC 4787), and anybody
may answer there. With ``nat: symmetric`` it has one for each far end, who alone may.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from gateway.control.running import FlowRecord, FlowState
from gateway.decision import Decision
from gateway.dispatch import REASONS, RECENT, OwnTraffic, Routing
from gateway.errors import UpstreamFailure
from gateway.flow import CloseReason, Endpoint, FlowFacts, Protocol
from gateway.inbound.udp import LISTEN_ON, Upgoing
from gateway.kernel.datagrams import Address, Batch, split_ends
from gateway.kernel.icmp_errors import ErrorSender
from gateway.kernel.sockets import SocketFactory, family_of
from gateway.kernel.udp_sockets import ErrorReport, UdpSockets, read_ends
from gateway.outbound.base import Outbound
from gateway.outbound.datagrams import Leg
from gateway.relay.udp import Conversation, ReplySockets
from gateway.sniff.sighting import Sighting
from gateway.sniffing import Sniffing
from gateway.sniffing_udp import MOST_WAITING, UnheardFlow
from gateway.wire.icmp_error import IcmpError, from_wire

#: So much both ways makes a conversation a stream: a call, a game, a tunnel (bytes).
STREAM_BYTES: Final = 64 << 10
DNS_PORT: Final = 53
QUIC_PORT: Final = 443
#: How long a refusal is remembered: until then every datagram is answered without a look at
#: the rules (seconds).
REFUSAL_S: Final = 1.0
#: Conversations looked at to find one that is quiet, when there is no room for another.
SECOND_CHANCES: Final = 16


class UdpSettings(NamedTuple):
    """Time-outs in seconds, and how many conversations there may be; of this process."""

    idle: float
    idle_dns: float
    idle_stream: float
    flows: int
    flows_per_device: int
    symmetric: bool


class UdpFlow(Conversation):
    """One conversation with what is known of it."""

    __slots__ = (
        "_desk", "decision", "detail", "ended", "facts", "id", "keys", "mapping", "quiet_since",
        "reason", "seen", "started", "started_at",
    )  # fmt: skip

    def __init__(
        self, desk: Datagrams, flow_id: int, facts: FlowFacts, decision: Decision, client: Address
    ) -> None:
        super().__init__(client, facts.destination, desk.replies)
        self._desk = desk
        self.id = flow_id
        self.facts = facts
        self.decision = decision
        #: By which datagrams of the client are known to be this flow's.
        self.keys: list[bytes] = []
        self.mapping: Mapping | None = None
        self.detail = ""
        self.started = self.quiet_since = time.monotonic()
        self.started_at = time.time()
        self.ended = 0.0
        self.reason: CloseReason | None = None
        self.seen = 0

    def mute(self, error: OSError) -> None:
        """The client cannot be answered."""
        self.detail = f"no socket can speak as {self.facts.destination}: {error.strerror}"
        self.close(CloseReason.NO_RESOURCES)

    def close(self, reason: CloseReason) -> None:
        """End it; once."""
        if self.reason is None:
            self.reason = reason
            self.ended = time.monotonic()
            self._release()
            self.leg = None
            self._desk.closed(self)

    def moved(self, now: float) -> bool:
        """Whether anything has moved since this was last asked."""
        seen = self.bytes_up + self.bytes_down
        if seen == self.seen:
            return False
        self.seen = seen
        self.quiet_since = now
        return True

    def idle_limit(self, settings: UdpSettings) -> float:
        """After how many quiet seconds it has ended."""
        port = self.facts.destination.port
        if port == DNS_PORT:
            return settings.idle_dns
        if port == QUIC_PORT or min(self.bytes_up, self.bytes_down) >= STREAM_BYTES:
            return settings.idle_stream
        return settings.idle

    def record(self) -> FlowRecord:
        """The flow as the API and the log show it."""
        state = FlowState.CLOSED if self.reason else FlowState.RELAYING
        if not self.reason and (self.leg is None or self.leg.sock is None):
            state = FlowState.CONNECTING
        return FlowRecord(
            id=self.id,
            protocol=Protocol.UDP,
            client=self.facts.source,
            destination=self.facts.destination,
            rule=self.decision.rule,
            outbound=self.decision.outbound,
            interface=self.facts.interface,
            started=self.started_at,
            state=state,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
            duration_s=(self.ended or time.monotonic()) - self.started,
            close_reason=self.reason,
            detail=self.detail,
            name=self.facts.name or "",
            sniffed=self.facts.sniffed or "",
        )


class Mapping:
    """A client's socket, as seen through one outbound: owner of a leg."""

    def __init__(
        self, desk: Datagrams, key: MappingKey, facts: FlowFacts, decision: Decision
    ) -> None:
        self._desk = desk
        self._ends: tuple[Endpoint, Endpoint | None] | None = None
        self.key = key
        self.facts = facts
        self.decision = decision
        self.leg: Leg | None = None
        self.flows: dict[Endpoint, UdpFlow] = {}

    def stranger(self, remote: Endpoint) -> UdpFlow | None:
        """A far end that the client has not talked to through this mapping."""
        return self.flows.get(remote) or self._desk.answered_by_stranger(self, remote)

    def leg_opened(self, local: Endpoint, remote: Endpoint | None) -> None:
        """Let the loop detector know the leg."""
        self.forget_leg()
        self._ends = (local, remote)
        self._desk.own_legs[local.port].append(self._ends)

    def leg_failed(self, failure: UpstreamFailure, detail: str) -> None:
        """End every flow, and have their clients told."""
        self._desk.mapping_failed(self, failure, detail)

    def leg_error(self, report: ErrorReport) -> None:
        """Pass on what the network says."""
        self._desk.pass_on(self, report)

    def leg_dropped(self, why: str) -> None:
        """Count it."""
        self._desk.dropped(why)

    def forget_leg(self) -> None:
        """The leg has gone."""
        if self._ends is not None:
            legs = self._desk.own_legs[self._ends[0].port]
            legs.remove(self._ends)
            if not legs:
                del self._desk.own_legs[self._ends[0].port]
            self._ends = None


class MappingKey(NamedTuple):
    """``far`` only where the mapping is for one far end. ``outbound`` is the object's ``id``."""

    client: Endpoint
    outbound: int
    family: int
    far: Endpoint | None


class Refusal:
    """Answers every datagram of a conversation that is not to be."""

    __slots__ = ("_desk", "_facts", "until")

    def __init__(self, desk: Datagrams, facts: FlowFacts, until: float) -> None:
        self._desk = desk
        self._facts = facts
        self.until = until

    def up(self, batch: Batch, first: int, last: int) -> None:
        """Say that nobody is there."""
        del batch, first, last
        self._desk.counters["udp_refused"] += 1
        self._desk.tell(IcmpError.PORT_UNREACHABLE, self._facts.source, self._facts.destination)


class Datagrams:
    """Takes datagrams through the pipeline; owns the conversations until they end."""

    def __init__(
        self,
        factory: SocketFactory,
        routing: Routing,
        settings: UdpSettings,
        own: OwnTraffic,
        on_closed: Callable[[UdpFlow], None],
        call_later: Callable[[float, Callable[[], None]], asyncio.TimerHandle],
        *,
        detect_loops: bool = True,
        flow_ids: tuple[int, int] = (1, 1),
    ) -> None:
        sockets = UdpSockets(factory)
        self.routing = routing
        self.settings = settings
        self.own = own
        self.replies = ReplySockets(sockets.open_reply)
        self.batch = Batch()
        self.known: dict[bytes, Upgoing] = {}
        self.own_legs: defaultdict[int, list[tuple[Endpoint, Endpoint | None]]] = defaultdict(list)
        self.counters: Counter[str] = Counter()
        self.recent: deque[UdpFlow] = deque(maxlen=RECENT)
        self._errors = ErrorSender(sockets)
        self._on_closed = on_closed
        self._detect_loops = detect_loops
        self._mappings: dict[MappingKey, Mapping] = {}
        self._flows: dict[UdpFlow, None] = {}  # the oldest first
        self._of_device: defaultdict[str, dict[UdpFlow, None]] = defaultdict(dict)
        self._by_ends: dict[tuple[Endpoint, Endpoint], UdpFlow] = {}
        self._refusals: deque[tuple[float, bytes]] = deque()
        self._sniffing = Sniffing(call_later, self.counters, self._sniffed)
        self._next_id, self._id_step = flow_ids

    @property
    def live(self) -> Iterable[UdpFlow]:
        """Conversations that have not ended, oldest first."""
        return tuple(self._flows)

    @property
    def live_count(self) -> int:
        """How many have not ended."""
        return len(self._flows)

    # --- a datagram that belongs to nothing yet ---------------------------------------------

    def arrived(self, ends: bytes, batch: Batch, slot: int) -> Upgoing | None:
        """Decide whose it is, or what becomes of it."""
        del batch, slot
        found = read_ends(ends)
        if found is None or found.destination.host in LISTEN_ON:
            self.counters["refused_not-diverted"] += 1
            return None
        source, destination, index = found
        flow = self._by_ends.get((source, destination))
        if flow is not None:
            self._know(ends, flow)
            return flow
        policy, finder = self.routing.policy, self.routing.finder
        facts = finder.of_datagram(source, destination, index)
        now = finder.now()
        answer = policy.decide(facts, now)
        decision = answer if isinstance(answer, Decision) else policy.settle(facts, now)
        if source.host in self.own.addresses and self._is_loop(source, destination):
            flow = self._flow(facts, decision, Address(split_ends(ends)[0]))
            flow.detail = "an outbound's own datagrams were diverted"
            flow.close(CloseReason.LOOP)
            return None
        if decision is not answer and self._may_wait(destination.port):
            unheard = self.known[ends] = UnheardFlow(self, ends, facts)
            self._sniffing.begin(unheard, self.routing.sniff)
            return unheard
        return self._begin(ends, facts, decision)

    def heard(self, flow: UnheardFlow, seen: Sighting) -> None:
        """Decide a flow by its client's first datagrams, and send onward what was kept of them."""
        self._sniffing.learned(flow, seen)

    def dropped(self, why: str) -> None:
        """Count a datagram that was left out."""
        self.counters[f"udp_dropped_{why}"] += 1

    def _may_wait(self, port: int) -> bool:
        return self.routing.sniff.covers(port) and len(self._sniffing) < MOST_WAITING

    def _sniffed(self, unheard: UnheardFlow, seen: Sighting) -> None:
        facts = unheard.facts._replace(name=seen.name, sniffed=seen.protocol)
        now = self.routing.finder.now()
        flow = self._begin(unheard.ends, facts, self.routing.policy.settle(facts, now))
        unheard.onward = flow
        for datagram in unheard.kept:
            if flow is not None:
                flow.up_one(self.batch, datagram)

    def _begin(self, ends: bytes, facts: FlowFacts, decision: Decision) -> UdpFlow | None:
        """A decided conversation; None where it has ended at once."""
        flow = self._flow(facts, decision, Address(split_ends(ends)[0]))
        self._know(ends, flow)
        self._open(flow, self.routing.outbounds[decision.way])
        return flow if flow.reason is None else None

    def answered_by_stranger(self, mapping: Mapping, remote: Endpoint) -> UdpFlow | None:
        """The conversation of a far end that speaks first; None: it is not heard."""
        client = mapping.key.client
        if mapping.key.far is not None or (client, remote) in self._by_ends:
            self.counters["udp_dropped_stranger"] += 1
            return None
        first = next(iter(mapping.flows.values()), None)
        if first is None or mapping.leg is None:
            return None
        facts = mapping.facts._replace(destination=remote)
        flow = self._flow(facts, mapping.decision, first.client)
        if flow.reason is None:
            self._join(flow, mapping, mapping.leg)
        return flow if flow.reason is None else None

    def _know(self, ends: bytes, flow: UdpFlow) -> None:
        self.known[ends] = flow
        flow.keys.append(ends)

    def _flow(self, facts: FlowFacts, decision: Decision, client: Address) -> UdpFlow:
        device = self._of_device[facts.source.host]
        if len(device) >= self.settings.flows_per_device:
            self._evict(device)
        if len(self._flows) >= self.settings.flows:
            self._evict(self._flows)
        flow = UdpFlow(self, self._next_id, facts, decision, client)
        self._next_id += self._id_step
        self.counters["udp_flows"] += 1
        self._flows[flow] = None
        self._of_device[facts.source.host][flow] = None
        self._by_ends[facts.source, facts.destination] = flow
        return flow

    def _open(self, flow: UdpFlow, outbound: Outbound) -> None:
        if outbound.carries_udp is False:
            flow.detail = "the outbound carries no UDP"
            self._close_refused(flow, CloseReason.REJECTED)
            return
        source, destination = flow.facts.source, flow.facts.destination
        family = family_of(destination.host)
        far = destination if self.settings.symmetric else None
        key = MappingKey(source, id(outbound), family, far)
        mapping = self._mappings.get(key)
        if mapping is None:
            mapping = self._mappings[key] = Mapping(self, key, flow.facts, flow.decision)
        if mapping.leg is None:
            mapping.flows[destination] = flow
            flow.mapping = mapping
            try:
                leg = outbound.associate(family, source, mapping, self.batch)
            except OSError as error:
                mapping.leg_failed(UpstreamFailure.RESOURCES, error.strerror or str(error))
                return
            if flow.reason is not None or leg is None:
                return
            mapping.leg = leg
        self._join(flow, mapping, mapping.leg)

    def _join(self, flow: UdpFlow, mapping: Mapping, leg: Leg) -> None:
        flow.mapping = mapping
        flow.leg = leg
        mapping.flows[flow.facts.destination] = flow
        flow.way = leg.way(flow.facts.destination, flow)

    # --- ends ------------------------------------------------------------------------------

    def closed(self, flow: UdpFlow) -> None:
        """Forget a conversation that has ended; the last of a mapping takes the leg along."""
        facts = flow.facts
        del self._flows[flow]
        device = self._of_device[facts.source.host]
        del device[flow]
        if not device:
            del self._of_device[facts.source.host]
        del self._by_ends[facts.source, facts.destination]
        for key in flow.keys:
            self.known.pop(key, None)
        mapping = flow.mapping
        if mapping is not None:
            mapping.flows.pop(facts.destination, None)
            if mapping.leg is not None:
                mapping.leg.forget(flow)
            if not mapping.flows:
                self._end_mapping(mapping)
        self.counters[f"udp_closed_{flow.reason}"] += 1
        self.counters["bytes_up"] += flow.bytes_up
        self.counters["bytes_down"] += flow.bytes_down
        self.recent.append(flow)
        self._on_closed(flow)

    def mapping_failed(self, mapping: Mapping, failure: UpstreamFailure, detail: str) -> None:
        """End the flows of a mapping whose leg is gone, and tell their client."""
        mapping.leg = None
        for flow in list(mapping.flows.values()):
            flow.detail = detail
            self._close_refused(flow, REASONS[failure])
        self._end_mapping(mapping)

    def _end_mapping(self, mapping: Mapping) -> None:
        if self._mappings.get(mapping.key) is mapping:
            del self._mappings[mapping.key]
        mapping.forget_leg()
        if mapping.leg is not None:
            mapping.leg.close()
            mapping.leg = None

    def _close_refused(self, flow: UdpFlow, reason: CloseReason) -> None:
        """End a flow, and answer what its client sends in the next moment."""
        keys = flow.keys
        flow.close(reason)
        self.tell(IcmpError.PORT_UNREACHABLE, flow.facts.source, flow.facts.destination)
        until = time.monotonic() + REFUSAL_S
        refusal = Refusal(self, flow.facts, until)
        for ends in keys:
            self.known[ends] = refusal
            self._refusals.append((until, ends))

    def _evict(self, among: dict[UdpFlow, None]) -> None:
        """End the oldest that has been quiet since the last look, or else the oldest looked at."""
        now = time.monotonic()
        for _ in range(min(SECOND_CHANCES, len(among) - 1)):
            flow = next(iter(among))
            if not flow.moved(now):
                break
            del among[flow]
            among[flow] = None
        next(iter(among)).close(CloseReason.EVICTED)

    def expire(self, now: float) -> None:
        """End what has been quiet too long. ``now``: ``time.monotonic``."""
        settings = self.settings
        for flow in list(self._flows):
            if not flow.moved(now) and now - flow.quiet_since >= flow.idle_limit(settings):
                flow.close(CloseReason.IDLE_TIMEOUT)
        while self._refusals and self._refusals[0][0] <= now:
            _, ends = self._refusals.popleft()
            known = self.known.get(ends)
            if isinstance(known, Refusal) and known.until <= now:
                del self.known[ends]

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
            self.tell(error, flow.facts.source, flow.facts.destination, report.mtu)

    def tell(self, error: IcmpError, client: Endpoint, remote: Endpoint, mtu: int = 0) -> None:
        """Send the client an ICMP error in the name of the far end."""
        said = self._errors.tell(error, client, remote, time.monotonic(), mtu)
        self.counters["udp_icmp_sent" if said else "udp_icmp_unsent"] += 1

    def _is_loop(self, source: Endpoint, destination: Endpoint) -> bool:
        """Whether a datagram from one of our addresses is one that a leg sent."""
        if not self._detect_loops:
            return False
        if not self.own.diverted:
            return True
        return any(
            remote is None or remote == destination
            for _, remote in self.own_legs.get(source.port, ())
        )
