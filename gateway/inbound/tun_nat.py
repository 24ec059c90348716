"""The address translation that hands TCP flows of a TUN to the kernel's own stack.

A flow ``A:a -> D:d`` is written back as ``peer:n -> own:port``: from an address that nobody
has, to a listener on the device's own. The listener's answers are routed into the device, and
become ``D:d -> A:a``. The number ``n`` stands for the flow, on both ways.

Nothing here reads a clock or a packet: *ends* are the bytes of a packet from its source
address to its destination port, which stand together in a header without options; ``now`` is
any steady clock's (seconds).
"""

from __future__ import annotations

from collections import deque
from ipaddress import ip_address
from typing import Final, NamedTuple

from gateway.flow import Endpoint
from gateway.wire.ip import FIN, RST, SYN, delta

#: The numbers; low ports are left to those who filter by them.
NUMBERS: Final = range(10000, 65536)


def numbers_of(queue: int, queues: int) -> range:
    """The numbers whose packets come to a queue (``gateway.kernel.steering``)."""
    return NUMBERS[(queue - NUMBERS.start) % queues :: queues]


#: The kernel keeps a socket that ended first for 60 s (``TCP_TIMEWAIT_LEN`` of <net/tcp.h>),
#: and takes a new connection with the same ends for an old one's late packets.
TIME_WAIT_S: Final = 62.0
#: Where the client ended first, or one of them by a reset: for packets that are still under way.
LINGER_S: Final = 5.0
#: Longer than the kernel goes on answering a client that does not complete its handshake
#: (``tcp_synack_retries``: the last of five waits is 32 s).
OPENING_S: Final = 70.0


#: Whose packet it is.
CLIENT: Final = 1
LISTENER: Final = 2


class NatFlow:
    """One flow. ``ends`` are those of the client's packets; ``seen`` is when one last passed."""

    __slots__ = ("accepted", "active", "ended", "ends", "fins", "linger", "number", "seen")

    def __init__(self, number: int, ends: bytes, now: float) -> None:
        self.number = number
        self.ends = ends
        self.seen = now
        self.active = False
        self.accepted = False
        self.fins = 0
        #: Whether it is over, and how long (seconds) its number is kept then.
        self.ended = False
        self.linger = LINGER_S


class Rewrite(NamedTuple):
    """What becomes of packets of one direction.

    ``address_change``, ``change``: what the new addresses, and the new ends, add to a sum of
    words (``gateway.wire.ip.delta``). ``side``: ``CLIENT`` or ``LISTENER``, who sends them.
    """

    ends: bytes
    address_change: int
    change: int
    flow: NatFlow
    side: int


class NatTable:
    """The flows of one address family.

    ``own`` and ``peer``: addresses as bytes, and ``port`` the listener's. ``numbers``: those
    that it may give, of ``NUMBERS``. ``known``: by the ends of a packet, what becomes of it.
    ``most``: flows at most; those go first that nobody has accepted or that are over, then the
    oldest. ``idle_s``: an accepted flow without packets is forgotten after it; whoever
    accepted it ends it earlier.
    """

    def __init__(
        self,
        own: bytes,
        peer: bytes,
        port: int,
        *,
        numbers: range = NUMBERS,
        most: int = len(NUMBERS),
        idle_s: float,
    ) -> None:
        self._own = own + port.to_bytes(2, "big")
        self._peer = peer
        self._most = min(most, len(numbers))
        self._idle_s = idle_s
        self.known: dict[bytes, Rewrite] = {}
        self.flows: dict[int, NatFlow] = {}
        # Who makes room, in this order; those that the kernel keeps (TIME_WAIT) never do.
        self._passing: dict[int, None] = {}
        self._lasting: dict[int, None] = {}
        self._fresh = iter(numbers)
        self._free: deque[int] = deque()

    def open(self, ends: bytes, now: float) -> NatFlow | None:
        """A new flow of a client's; None where every number is kept for one that is over.

        An old flow with the same ends is over: the client has begun anew.
        """
        old = self.known.get(ends)
        if old is not None:
            self._end(old.flow, old.flow.linger)
            del self.known[ends]
        if len(self.flows) >= self._most and not self._make_room():
            return None
        number = next(self._fresh, None) or self._free.popleft()
        flow = NatFlow(number, ends, now)
        self.flows[number] = flow
        self._passing[number] = None
        half = len(self._peer)
        client, remote = ends[:half] + ends[-4:-2], ends[half:-4] + ends[-2:]
        peer = self._peer + number.to_bytes(2, "big")
        self.known[ends] = _rewrite(ends, _ends(peer, self._own), flow, CLIENT)
        answer = _ends(self._own, peer)
        self.known[answer] = _rewrite(answer, _ends(remote, client), flow, LISTENER)
        return flow

    def accept(self, number: int) -> tuple[Endpoint, Endpoint] | None:
        """The client and the original destination of a flow that the listener has accepted."""
        flow = self.flows.get(number)
        if flow is None:
            return None
        flow.accepted = True
        if not flow.ended:
            self._passing.pop(number, None)
            self._lasting[number] = None
        ends, half = flow.ends, len(self._peer)
        return (
            Endpoint(str(ip_address(ends[:half])), int.from_bytes(ends[-4:-2], "big")),
            Endpoint(str(ip_address(ends[half:-4])), int.from_bytes(ends[-2:], "big")),
        )

    def listened(self, ends: bytes) -> bytes | None:
        """The ends of the listener's packet that has left with these; None: there is no such."""
        found = self.known.get(_answering(ends))
        if found is None or found.side != CLIENT:
            return None
        return _answering(found.ends)

    def turn(self, flow: NatFlow, side: int, flags: int) -> bool:
        """Note a packet from ``side`` with FIN, SYN or RST; False: it does not belong here.

        Such is the SYN of a client that begins anew where a flow is over.
        """
        if flags & RST:
            self._end(flow, LINGER_S)
        elif flags & SYN:
            return not (flow.ended and side == CLIENT)
        elif flags & FIN:
            if side == LISTENER and not flow.fins:
                flow.linger = TIME_WAIT_S
            flow.fins |= side
            if flow.fins == CLIENT | LISTENER:
                self._end(flow, flow.linger)
        return True

    def expire(self, now: float) -> None:
        """Forget flows that are over, or quiet for too long; call it every few seconds."""
        quiet = []
        for flow in self.flows.values():
            if flow.active:
                flow.active = False
                flow.seen = now
            elif now - flow.seen >= self._patience(flow):
                quiet.append(flow)
        for flow in quiet:
            self._forget(flow)

    def _patience(self, flow: NatFlow) -> float:
        if flow.ended:
            return flow.linger
        return self._idle_s if flow.accepted else OPENING_S

    def _end(self, flow: NatFlow, linger: float) -> None:
        number = flow.number
        flow.ended = True
        flow.linger = linger
        self._lasting.pop(number, None)
        self._passing.pop(number, None)
        if linger < TIME_WAIT_S:
            self._passing[number] = None

    def _make_room(self) -> bool:
        for numbers in (self._passing, self._lasting):
            for number in numbers:
                self._forget(self.flows[number])
                return True
        return False

    def _forget(self, flow: NatFlow) -> None:
        number = flow.number
        del self.flows[number]
        self._passing.pop(number, None)
        self._lasting.pop(number, None)
        known = self.known.get(flow.ends)
        if known is not None and known.flow is flow:  # not the one that the client began anew
            del self.known[flow.ends]
        del self.known[_ends(self._own, self._peer + number.to_bytes(2, "big"))]
        self._free.append(number)


def _ends(source: bytes, destination: bytes) -> bytes:
    """Both ends as they stand in a packet; each is an address and a port."""
    return source[:-2] + destination[:-2] + source[-2:] + destination[-2:]


def _answering(ends: bytes) -> bytes:
    """Those of the packets that answer."""
    half = (len(ends) - 4) // 2
    return ends[half:-4] + ends[:half] + ends[-2:] + ends[-4:-2]


def _rewrite(before: bytes, after: bytes, flow: NatFlow, side: int) -> Rewrite:
    change = delta(before[:-4], after[:-4])
    return Rewrite(after, change, delta(before, after), flow, side)
