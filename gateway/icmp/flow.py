"""One host's pings of another, by one identifier: requests out, replies and errors back."""

from __future__ import annotations

import errno
import time
from typing import Protocol

from gateway.control.running import FlowRecord, FlowState
from gateway.decision import Decision
from gateway.flow import CloseReason, FlowFacts
from gateway.flow import Protocol as Transport
from gateway.icmp.errors import ErrorWriter
from gateway.kernel.ping_sockets import PingSocket
from gateway.kernel.reactor import ERROR
from gateway.outbound.base import EchoRefusal
from gateway.wire.icmp_error import IcmpError
from gateway.wire.icmp_packet import Echo, echo_message, echo_reply, sent_request


class EchoOwner(Protocol):
    """Who keeps the flows, and speaks to clients."""

    errors: ErrorWriter

    def count(self, what: str) -> None:
        """Count something that has happened."""

    def answer(self, packet: bytes) -> None:
        """Give a client a packet."""

    def closed(self, flow: EchoFlow) -> None:
        """It has ended."""


class EchoFlow:
    """Either a ping socket or, where there is none, the reason why requests are refused."""

    __slots__ = (
        "_owner", "_request", "_socket", "bytes_down", "bytes_up", "decision", "detail", "ended",
        "facts", "id", "quiet_since", "reason", "started", "started_at", "way",
    )  # fmt: skip

    def __init__(
        self,
        owner: EchoOwner,
        flow_id: int,
        facts: FlowFacts,
        decision: Decision,
        way: PingSocket | EchoRefusal,
    ) -> None:
        self._owner = owner
        self._request: Echo | None = None
        self._socket = way if isinstance(way, PingSocket) else None
        self.way = way
        self.id = flow_id
        self.facts = facts
        self.decision = decision
        self.detail = ""
        self.bytes_up = 0
        self.bytes_down = 0
        self.started = self.quiet_since = time.monotonic()
        self.started_at = time.time()
        self.ended = 0.0
        self.reason: CloseReason | None = None

    def ask(self, request: Echo, hop_limit: int) -> None:
        """Send a request onward, with so many hops to go."""
        self._request = request
        self.quiet_since = time.monotonic()
        socket = self._socket
        if socket is None:
            return
        message = echo_message(request.family, request.sequence, request.data)
        try:
            socket.send(message, hop_limit, whole=request.whole)
        except OSError as error:
            self._unsent(socket, request, error)
            return
        self.bytes_up += len(request.data)

    def _unsent(self, socket: PingSocket, request: Echo, error: OSError) -> None:
        about = sent_request(request, request.sequence)
        if error.errno == errno.EMSGSIZE:
            self._owner.errors.tell(about, IcmpError.TOO_BIG, info=socket.path_mtu())
        elif error.errno == errno.ENETUNREACH:
            self._owner.errors.tell(about, IcmpError.NET_UNREACHABLE)
        elif error.errno in (errno.EHOSTUNREACH, errno.EADDRNOTAVAIL):
            self._owner.errors.tell(about, IcmpError.HOST_UNREACHABLE)
        else:
            self._owner.count("icmp_dropped_unsent")

    def on_ready(self, fd: int, events: int) -> None:
        """Take what has come."""
        del fd
        socket, request, owner = self._socket, self._request, self._owner
        if socket is None or request is None:
            return
        self.quiet_since = time.monotonic()
        if events & ERROR:
            for error in socket.errors():
                owner.errors.pass_on(sent_request(request, error.sequence), error.told)
        for reply in socket.replies():
            if reply.host != request.destination:
                owner.count("icmp_dropped_stranger")
                continue
            self.bytes_down += len(reply.data)
            owner.count("icmp_echo_replies")
            owner.answer(echo_reply(request, reply.sequence, reply.data, reply.hop_limit))

    def abort(self) -> None:
        """End after a bug."""
        self.close(CloseReason.INTERNAL_ERROR)

    def close(self, reason: CloseReason) -> None:
        """End it; once."""
        if self.reason is None:
            self.reason = reason
            self.ended = time.monotonic()
            self._owner.closed(self)

    def record(self) -> FlowRecord:
        """The flow as the API and the log show it."""
        return FlowRecord(
            id=self.id,
            protocol=Transport.ICMP,
            client=self.facts.source,
            destination=self.facts.destination,
            rule=self.decision.rule,
            outbound=self.decision.outbound,
            interface=self.facts.interface,
            started=self.started_at,
            state=FlowState.CLOSED if self.reason else FlowState.RELAYING,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
            duration_s=(self.ended or time.monotonic()) - self.started,
            close_reason=self.reason,
            detail=self.detail,
        )
