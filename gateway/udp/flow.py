"""One UDP conversation, with what is known of it."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from gateway.control.running import FlowRecord, FlowState
from gateway.decision import Decision
from gateway.flow import CloseReason, FlowFacts
from gateway.flow import Protocol as Transport
from gateway.kernel.datagrams import Batch
from gateway.kernel.sockaddr import Address
from gateway.relay.udp import Conversation
from gateway.udp.face import Face
from gateway.wire.icmp_error import IcmpError

if TYPE_CHECKING:
    from gateway.udp.mapping import Mapping

#: So much both ways makes a conversation a stream: a call, a game, a tunnel (bytes).
STREAM_BYTES: Final = 64 << 10
DNS_PORT: Final = 53
QUIC_PORT: Final = 443
#: What sends say where routes end in `unreachable`, or are lost altogether (ip-route(8)).
NO_WAY: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN})


class UdpSettings(NamedTuple):
    """Time-outs in seconds, and how many conversations there may be; of this process."""

    idle: float
    idle_dns: float
    idle_stream: float
    flows: int
    flows_per_device: int
    symmetric: bool


class FlowOwner(Protocol):
    """Who keeps the flows."""

    face: Face
    batch: Batch

    def closed(self, flow: UdpFlow) -> None:
        """It has ended."""

    def tell(self, error: IcmpError, facts: FlowFacts) -> None:
        """Send its client an ICMP error."""


class UdpFlow(Conversation):
    """One conversation with what is known of it."""

    __slots__ = (
        "_owner", "decision", "detail", "ended", "facts", "heard", "id", "keys", "mapping",
        "member", "quiet_since", "reason", "seen", "started", "started_at", "unheard_since",
    )  # fmt: skip

    def __init__(
        self, owner: FlowOwner, flow_id: int, facts: FlowFacts, decision: Decision, client: Address
    ) -> None:
        super().__init__(client, facts.destination, owner.face.replies)
        self._owner = owner
        self.id = flow_id
        self.facts = facts
        self.decision = decision
        #: By which datagrams of the client are known to be this flow's.
        self.keys: list[bytes] = []
        self.mapping: Mapping | None = None
        self.detail = ""
        self.member = ""
        self.started = self.quiet_since = self.unheard_since = time.monotonic()
        self.started_at = time.time()
        self.ended = 0.0
        self.reason: CloseReason | None = None
        self.seen = 0
        self.heard = 0

    def mute(self, error: OSError) -> None:
        """The client cannot be answered."""
        self.detail = f"no socket can speak as {self.facts.destination}: {error.strerror}"
        self.close(CloseReason.NO_RESOURCES)

    def unsent(self, batch: Batch) -> None:
        """Have the client told, where there is no way at all for now."""
        failure, batch.failure = batch.failure, 0
        if failure in NO_WAY:
            self._owner.tell(IcmpError.HOST_UNREACHABLE, self.facts)

    def close(self, reason: CloseReason) -> None:
        """End it; once."""
        if self.reason is None:
            self.reason = reason
            self.ended = time.monotonic()
            self._release()
            self.leg = None
            self._owner.closed(self)

    def moved(self, now: float) -> bool:
        """Whether anything has moved since this was last asked."""
        seen = self.bytes_up + self.bytes_down
        if seen == self.seen:
            return False
        self.seen = seen
        self.quiet_since = now
        if self.bytes_down != self.heard:
            self.heard = self.bytes_down
            self.unheard_since = now
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
            protocol=Transport.UDP,
            client=self.facts.source,
            destination=self.facts.destination,
            rule=self.decision.rule,
            outbound=self.decision.outbound,
            member=self.member,
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
