"""The pipeline on one screen: accepted, decided, connected, relayed, closed."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from socket import MSG_PEEK, SOCK_STREAM, SocketType
from typing import Final, Literal, NamedTuple

from gateway.breaker import Ends, StreamBreaker, advice, ends
from gateway.control.running import FlowRecord, FlowState
from gateway.decision import Decision
from gateway.errors import UpstreamFailure
from gateway.flow import CloseReason, Endpoint, FlowFacts
from gateway.kernel.own_sockets import OwnSockets
from gateway.kernel.reactor import ERROR, HANGUP, READ_HANGUP, UNKNOWN
from gateway.kernel.sockets import reset_on_close
from gateway.outbound.base import FIRST_BYTES, Attempt, Outbound
from gateway.relay.tcp import Mover, Relay
from gateway.routing import (
    NAMELESS,
    OWN_DIVERTED,
    REASONS,
    RECENT,
    FlowTimeouts,
    OwnTraffic,
    Routing,
)
from gateway.sniff import stream
from gateway.sniff.sighting import Sighting
from gateway.sniffing import Sniffing
from gateway.trial import Trials

_CLOSED: Final = {reason: f"closed_{reason}" for reason in CloseReason}


class _End(NamedTuple):
    """How a flow ended, and when (``time.monotonic``)."""

    reason: CloseReason
    at: float
    bytes_up: int
    bytes_down: int


class Flow:
    """One flow, from accept to close: the watcher of its client until the relay takes over."""

    __slots__ = (
        "_attempt", "_client", "_dispatcher", "_edges", "_end", "_relay", "decision", "detail",
        "facts", "id", "member", "quiet_since", "seen", "started",
    )  # fmt: skip

    def __init__(
        self,
        dispatcher: Dispatcher,
        flow_id: int,
        client: SocketType,
        facts: FlowFacts,
        decision: Decision | None,
    ) -> None:
        """``decision`` is None until the client's first bytes have been seen."""
        self._dispatcher = dispatcher
        self._client = client
        self._edges = 0
        self._attempt: Attempt | None = None
        self._relay: Relay | None = None
        self.id = flow_id
        self.facts = facts
        self.decision = decision
        self.detail = ""
        self.member = ""
        self.started = time.monotonic()
        self._end: _End | None = None
        self.seen = 0
        self.quiet_since = self.started

    @property
    def reason(self) -> CloseReason | None:
        """Why it has closed; None while it lives."""
        return self._end and self._end.reason

    @property
    def bytes_up(self) -> int:
        """What has left the client and was passed on."""
        if self._end is not None:
            return self._end.bytes_up
        return 0 if self._relay is None else self._relay.up.moved

    @property
    def bytes_down(self) -> int:
        """What the client was given."""
        if self._end is not None:
            return self._end.bytes_down
        return 0 if self._relay is None else self._relay.down.moved

    def open(self, outbound: Outbound) -> None:
        """Begin the second leg."""
        self._attempt = outbound.open(self.facts, self)

    def on_ready(self, fd: int, events: int) -> None:
        """The client, before it is relayed: what it sends is the relay's, its end ends the flow."""
        del fd
        self._edges |= events
        if events & (HANGUP | ERROR):
            self.close(CloseReason.CLIENT_RESET)
        elif self.decision is None:
            self._dispatcher.sniffing.look(self, ended=bool(events & READ_HANGUP))

    def abort(self) -> None:
        """End after a bug."""
        self.close(CloseReason.INTERNAL_ERROR)

    def first_bytes(self, most: int = FIRST_BYTES) -> bytes:
        """What the client has sent already; it stays in its socket."""
        try:
            return self._client.recv(most, MSG_PEEK)
        except OSError:  # nothing yet, or an end of which an edge of its own tells
            return b""

    def sighting(self) -> Sighting:
        """What the client has shown by now; it stays in its socket, and travels on first."""
        size = self._dispatcher.routing.sniff.size
        data = self.first_bytes(size)
        seen = stream.sighting(data)
        return seen if len(data) < size else seen._replace(complete=True)

    def connected(
        self, upstream: SocketType, surplus: bytes, sent: int = 0, edges: int = UNKNOWN
    ) -> None:
        """Relay from here on."""
        if self._attempt is not None:
            self.member = self._attempt.member
            self._attempt = None
        dispatcher = self._dispatcher
        self._relay = relay = Relay(dispatcher.mover, self._client, upstream, surplus, self)
        dispatcher.relaying(self)
        relay.start(self._edges, edges, sent)

    def failed(self, failure: UpstreamFailure, detail: str, replied: bool = False) -> None:
        """Give the client what it would have met: the flow ends with a reset."""
        del replied
        self._attempt = None
        self.detail = detail
        self.close(REASONS[failure])

    def close(self, reason: CloseReason) -> None:
        """End the flow, whatever it is doing; once."""
        if self._end is not None:
            return
        if self._relay is not None:
            self._relay.close(reason)
            return
        if self._attempt is not None:
            self._attempt.cancel()
        reset_on_close(self._client)
        self._dispatcher.mover.reactor.close(self._client)
        self._closed(reason)

    def check_idle(self, now: float, timeouts: FlowTimeouts) -> None:
        """Close a flow that moved nothing for too long; costs the flow nothing per byte."""
        relay = self._relay
        if relay is None:
            return
        # A half-close counts as movement: it begins a wait of its own. So does the first look.
        seen = 2 * (relay.up.moved + relay.down.moved) + relay.half_closed + 1
        if seen != self.seen:
            self.seen = seen
            self.quiet_since = now
        elif now - self.quiet_since >= (
            timeouts.half_closed if relay.half_closed else timeouts.idle
        ):
            relay.close(CloseReason.IDLE_TIMEOUT)

    def record(self) -> FlowRecord:
        """The flow as others see it."""
        decision = self.decision
        now = time.monotonic()
        if self._end is not None:
            state, until = FlowState.CLOSED, self._end.at
        elif decision is None:
            state, until = FlowState.SNIFFING, now
        else:
            state = FlowState.CONNECTING if self._relay is None else FlowState.RELAYING
            until = now
        return FlowRecord(
            id=self.id,
            client=self.facts.source,
            destination=self.facts.destination,
            rule="" if decision is None else decision.rule,
            outbound="" if decision is None else decision.outbound,
            member=self.member,
            interface=self.facts.interface,
            started=time.time() - now + self.started,
            state=state,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
            duration_s=until - self.started,
            close_reason=self.reason,
            detail=self.detail,
            name=self.facts.name or "",
            sniffed=self.facts.sniffed or "",
        )

    def relay_closed(self, reason: CloseReason) -> None:
        """The relay has given up both sockets."""
        self._closed(reason)

    def _closed(self, reason: CloseReason) -> None:
        self._end = _End(reason, time.monotonic(), self.bytes_up, self.bytes_down)
        self._attempt = self._relay = None
        self._dispatcher.closed(self, self._end)


class Dispatcher:
    """Takes accepted flows through the pipeline; owns them until they close.

    ``detect_loops`` False exists for the lab alone, which shows the loop. ``flow_ids``:
    number of the first flow, and the step to the next.
    """

    def __init__(
        self,
        mover: Mover,
        routing: Routing,
        own: OwnTraffic,
        opened: OwnSockets,
        on_closed: Callable[[Flow], None],
        *,
        detect_loops: bool = True,
        flow_ids: tuple[int, int] = (1, 1),
    ) -> None:
        self.mover = mover
        self.routing = routing
        self.own = own
        self._opened = opened
        self.counters: Counter[str] = Counter()
        self.recent: deque[Flow] = deque(maxlen=RECENT)
        self._on_closed = on_closed
        self._detect_loops = detect_loops
        self.sniffing = Sniffing(mover.reactor.call_later, self.counters, self._sniffed)
        self._connecting: dict[int, Flow] = {}  # in order of time-out
        self._relaying: dict[int, Flow] = {}
        breaker: StreamBreaker[Flow] = StreamBreaker(self._relaying)
        self._trials: Trials[Ends, Flow] = Trials(
            breaker.suspects, mover.reactor.call_later, self._open
        )
        self._next_id, self._id_step = flow_ids

    @property
    def live(self) -> Iterable[Flow]:
        """Flows that have not closed, oldest first within each stage."""
        return (*self._relaying.values(), *self._connecting.values(), *self.sniffing.flows)

    @property
    def live_count(self) -> int:
        """How many flows have not closed."""
        return len(self._relaying) + len(self._connecting) + len(self.sniffing)

    def accepted(self, client: SocketType, source: Endpoint, destination: Endpoint) -> None:
        """Decide a flow and begin its second leg."""
        routing = self.routing
        self.counters["flows_accepted"] += 1
        facts = routing.finder.of_stream(client, source, destination)
        decision = self._decide(facts)
        flow = Flow(self, self._next_id, client, facts, decision)
        self._next_id += self._id_step
        self.mover.reactor.watch(client.fileno(), flow)
        if source.host in self.own.addresses and self._is_loop(source, destination):
            flow.detail = OWN_DIVERTED
            flow.close(CloseReason.LOOP)
        elif decision is None:
            self.sniffing.begin(flow, routing.sniff)
        else:
            self._connect(flow, decision)

    def refused(self, reason: Literal["not-diverted", "no-resources"], source: Endpoint) -> None:
        """Count a connection that never became a flow."""
        del source
        self.counters[f"refused_{reason}"] += 1

    def relaying(self, flow: Flow) -> None:
        """A flow's second leg is up."""
        del self._connecting[flow.id]
        self._relaying[flow.id] = flow

    def closed(self, flow: Flow, end: _End) -> None:
        """A flow has ended; both its sockets are given up."""
        if self._relaying.pop(flow.id, None) is None:
            self._connecting.pop(flow.id, None)
            self.sniffing.forget(flow)
        counters = self.counters
        counters[_CLOSED[end.reason]] += 1
        counters["bytes_up"] += end.bytes_up
        counters["bytes_down"] += end.bytes_down
        self.recent.append(flow)
        self._on_closed(flow)

    def expire_connects(self, now: float) -> None:
        """Close flows whose second leg took too long. ``now``: ``time.monotonic``."""
        limit = now - self.routing.timeouts.connect
        for flow in list(self._connecting.values()):
            if flow.quiet_since > limit:
                return
            flow.detail = "the upstream did not answer in time"
            flow.close(CloseReason.CONNECT_TIMEOUT)

    def expire_idle(self, now: float) -> None:
        """Close flows that have been quiet too long. ``now``: ``time.monotonic``."""
        timeouts = self.routing.timeouts
        for flow in list(self._relaying.values()):
            flow.check_idle(now, timeouts)

    def close_all(self) -> None:
        """End every flow, because the gateway ends."""
        for flow in self.live:
            flow.close(CloseReason.SHUTDOWN)
        self.sniffing.stop()

    def _decide(self, facts: FlowFacts) -> Decision | None:
        """The policy's answer; None where the client's first bytes are to be seen before.

        A rule may ask for what they tell, or the outbound for a name; or they may ask for what
        the outbound cannot do without.
        """
        routing = self.routing
        now = routing.finder.now()
        answer = routing.policy.decide(facts, now)
        if isinstance(answer, Decision) and not (
            answer.sniff and (routing.outbounds[answer.way].by_name or self.own.may_ask(facts))
        ):
            return answer
        if routing.sniff.covers(facts.destination.port):
            return None
        return routing.policy.settle(facts, now)

    def _sniffed(self, flow: Flow, seen: Sighting) -> None:
        """Decide a flow by its client's first bytes, or by the lack of them."""
        flow.facts = flow.facts._replace(name=seen.name, sniffed=seen.protocol)
        flow.quiet_since = time.monotonic()
        routing = self.routing
        answer = routing.policy.decide(flow.facts, routing.finder.now())
        assert isinstance(answer, Decision), "all that can be known is known"
        if self._detect_loops and self.own.may_ask(flow.facts):
            # Over TCP, a message comes behind its length (RFC 1035 section 4.2.2).
            query = flow.first_bytes()[2:]
            flow.detail = self.own.missing_rule(flow.facts, answer.outbound, query)
            if flow.detail:
                flow.decision = answer
                flow.close(CloseReason.LOOP)
                return
        self._connect(flow, answer)

    def _connect(self, flow: Flow, decision: Decision) -> None:
        """Begin a decided flow's second leg."""
        flow.decision = decision
        self._connecting[flow.id] = flow
        if self.routing.is_nameless(flow.facts, decision.way):
            flow.detail = NAMELESS
            flow.close(CloseReason.FAKE_ADDRESS)
        elif not self._detect_loops or self._may_open(flow):
            flow.open(self.routing.outbounds[decision.way])

    def _may_open(self, flow: Flow) -> bool:
        """Whether a flow does not wait, as one of what may be a loop, nor has ended as one."""
        held, loop = self._trials.judge(ends(flow.facts), flow)
        if loop:
            # The proxy then ends the flow before it, and so on down to the first. Of a client
            # that merely looks like a loop, one is lost.
            flow.detail = advice(flow, own=flow.facts.source.host in self.own.addresses)
            flow.close(CloseReason.LOOP)
        return not held and not loop

    def _open(self, flow: Flow) -> None:
        """Go on with a flow that was held back."""
        assert flow.decision is not None
        outbound = self.routing.outbounds.get(flow.decision.way)
        if outbound is None:  # a reload has taken it away meanwhile
            flow.close(CloseReason.REJECTED)
        else:
            flow.open(outbound)

    def _is_loop(self, source: Endpoint, destination: Endpoint) -> bool:
        """Whether a flow from one of our addresses is one that an outbound opened.

        With several workers a loop may pass through others first; it ends at the one whose
        leg it is.
        """
        if not self._detect_loops:
            return False
        return not self.own.diverted or self._opened.sent(SOCK_STREAM, source, destination)
