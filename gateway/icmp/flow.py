"""One host's pings of another, by one identifier: requests out, replies and errors back."""

from __future__ import annotations

import errno
import time
from typing import Protocol

from gateway.control.running import FlowRecord, FlowState
from gateway.decision import Decision
from gateway.flow import CloseReason, FlowFacts
from gateway.flow import Protocol as Transport
from gateway.icmp.errors import ErrorWriter, Write
from gateway.kernel.ping_sockets import PingSocket
from gateway.kernel.reactor import ERROR
from gateway.outbound.base import EchoRefusal
from gateway.wire.echo_alike import Parts
from gateway.wire.icmp_error import IcmpError
from gateway.wire.icmp_packet import Echo, EchoReplies, echo_message, sent_request


class EchoOwner(Protocol):
    """Who keeps the flows, and speaks to clients."""

    errors: ErrorWriter
    answer: Write

    def count(self, what: str) -> None:
        """Count something that has happened."""

    def closed(self, flow: EchoFlow) -> None:
        """It has ended."""


class EchoFlow:
    """Either a ping socket or, where there is none, the reason why requests are refused."""

    __slots__ = (
        "_owner", "_replies", "_request", "_socket", "bytes_down", "bytes_up", "decision",
        "detail", "ended", "facts", "id", "parts", "quiet_since", "reason", "started",
        "started_at", "way",
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
        self._replies: EchoReplies | None = None
        #: By which more of its requests are told, once one has been sent.
        self.parts: Parts | None = None
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
        if self._replies is None:
            self._replies = EchoReplies(request)
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
        replies = self._replies
        if socket is None or request is None or replies is None:
            return
        if events & ERROR:
            for error in socket.errors():
                owner.errors.pass_on(sent_request(request, error.sequence), error.told)
        while (reply := socket.receive()) is not None:
            host, sequence, hop_limit, data = reply
            if host != request.destination:
                owner.count("icmp_dropped_stranger")
                continue
            owner.answer(replies.packet(sequence, data, hop_limit))
            owner.count("icmp_echo_replies")
            self.bytes_down += len(data)
        self.quiet_since = time.monotonic()

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
