"""The pipeline of echo requests on one screen.

One ping socket for each client, identifier and host that it asks: the identifier that the
kernel gives our requests leads a reply back to it.
"""

from __future__ import annotations

import errno
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from gateway.flow import CloseReason, Endpoint, Protocol
from gateway.icmp.errors import ErrorWriter, Write
from gateway.icmp.flow import EchoFlow
from gateway.icmp.limits import EchoSettings, Rate
from gateway.kernel.ping_sockets import PingSocket
from gateway.kernel.reactor import Reactor
from gateway.outbound.base import EchoRefusal
from gateway.routing import RECENT, OwnTraffic, Routing
from gateway.wire.echo_alike import Parts, common_parts
from gateway.wire.icmp_error import IcmpError, checksum
from gateway.wire.icmp_packet import ECHO_HEADER, Echo, EchoReplies, NoEcho, icmp_pseudo, read_echo
from gateway.wire.ip import VNET_BYTES, IpPacket, Vnet

#: What a client is told of a refusal; of others nothing.
_TOLD: Final = {
    EchoRefusal.NOT_CARRIED: IcmpError.PROHIBITED,
    EchoRefusal.REJECTED: IcmpError.PROHIBITED,
    EchoRefusal.UNREACHABLE: IcmpError.NET_UNREACHABLE,
}


#: Flags and type of GSO, in the vnet header of a packet that is one, and has its checksum.
_NOTHING_UNDONE: Final = b"\0\0"


class _Key(NamedTuple):
    source: str
    destination: str
    identifier: int


class _Alike(NamedTuple):
    """Whose request it is, how long its packet is (bytes), and what its checksum covers besides.

    ``send``: of the flow's socket, which fills in identifier and checksum.
    """

    flow: EchoFlow
    send: Callable[[bytearray], int]
    source: str
    size: int
    pseudo: bytes


class Echoes:
    """Takes echo requests through the pipeline; owns the flows until they end."""

    def __init__(
        self,
        reactor: Reactor,
        routing: Routing,
        settings: EchoSettings,
        own: OwnTraffic,
        errors: ErrorWriter,
        write: Write,
        on_closed: Callable[[EchoFlow], None],
        *,
        mtu: int = 1500,
        detect_loops: bool = True,
        flow_ids: tuple[int, int] = (1, 1),
    ) -> None:
        self.routing = routing
        self.settings = settings
        self.own = own
        self.errors = errors
        self.counters: Counter[str] = Counter()
        self.recent: deque[EchoFlow] = deque(maxlen=RECENT)
        self._reactor = reactor
        #: Gives a client a packet.
        self.answer = write
        self._mtu = mtu
        self._on_closed = on_closed
        self._detect_loops = detect_loops
        self._flows: dict[_Key, EchoFlow] = {}  # the oldest first
        self._keys: dict[EchoFlow, _Key] = {}
        self._alike: dict[Parts, _Alike] = {}
        self._of_device: defaultdict[str, dict[EchoFlow, None]] = defaultdict(dict)
        self._ours: set[tuple[str, int]] = set()
        self._rate = Rate()
        self._next_id, self._id_step = flow_ids

    @property
    def live(self) -> Iterable[EchoFlow]:
        """Flows that have not ended, oldest first."""
        return tuple(self._flows.values())

    @property
    def live_count(self) -> int:
        """How many have not ended."""
        return len(self._flows)

    def adopt(self, routing: Routing, settings: EchoSettings, own: OwnTraffic) -> None:
        """Go on by another configuration; flows stay as they are."""
        self.routing = routing
        self.settings = settings
        self.own = own
        self._alike.clear()

    # --- requests --------------------------------------------------------------------------

    def take(self, ip: IpPacket, vnet: Vnet, packet: memoryview) -> str | None:
        """Serve an ICMP packet; why it was dropped, in the words of a counter."""
        del vnet
        # What did not come through the device as one has been in fragments.
        request = read_echo(ip, packet, reassembled=ip.end > self._mtu)
        if isinstance(request, NoEcho):
            if request is NoEcho.OTHER:
                self.errors.tell(packet, IcmpError.PROHIBITED)
            return request
        settings, source = self.settings, request.source
        self.count("icmp_echo_requests")
        now = time.monotonic()
        if not self._rate.allows(source, settings.rate, settings.rate_per_device, now):
            return "icmp_rate"
        # What this machine sends has not been forwarded into the TUN: its hop is counted here,
        # so that whatever goes round ends.
        hop_limit = request.hop_limit
        if source in self.own.addresses:
            if self._is_loop(request):
                return "icmp_loop"
            hop_limit -= 1
        if hop_limit < 1:
            self.errors.expired(packet)
            return "icmp_expired"
        key = _Key(source, request.destination, request.identifier)
        flow = self._flows.get(key) or self._begin(key, ip.traffic_class >> 2)
        if isinstance(flow.way, EchoRefusal):
            self._refuse(flow.way, request, packet)
        flow.ask(request, hop_limit)
        if hop_limit == request.hop_limit and len(packet) == ip.end <= self._mtu:
            self._remember(flow, ip, packet)
        return None

    def _remember(self, flow: EchoFlow, ip: IpPacket, packet: memoryview) -> None:
        """Know requests like this one by what they have in common."""
        found = common_parts(packet)
        if found is None or not isinstance(flow.way, PingSocket):
            return
        start, parts = found
        if flow.parts is not None:
            self._alike.pop(flow.parts, None)
        flow.parts = parts
        pseudo = icmp_pseudo(ip.source, ip.destination, ip.end - start)
        send = flow.way.sock.send
        self._alike[parts] = _Alike(flow, send, flow.facts.source.host, ip.end, pseudo)

    def repeat(self, frame: bytearray, size: int) -> bool:
        """Send on a request like an earlier one. See ``gateway.inbound.tun.Repeater``.

        What is wrong with a request, or with its way, is found where it is parsed.
        """
        found = common_parts(frame, VNET_BYTES)
        if found is None:
            return False
        start, parts = found
        alike = self._alike.get(parts)
        if alike is None or alike.size != size - VNET_BYTES or frame[:2] != _NOTHING_UNDONE:
            return False
        message = frame[start:size]
        if checksum(alike.pseudo + message):
            return False
        settings, now = self.settings, time.monotonic()
        if not self._rate.allows(alike.source, settings.rate, settings.rate_per_device, now):
            return False
        try:
            alike.send(message)
        except OSError:
            return False
        flow = alike.flow
        flow.quiet_since = now
        flow.bytes_up += len(message) - ECHO_HEADER
        self.counters["icmp_echo_requests"] += 1
        return True

    def _begin(self, key: _Key, dscp: int) -> EchoFlow:
        settings, source = self.settings, key.source
        device = self._of_device[source]
        if len(device) >= settings.flows_per_device:
            next(iter(device)).close(CloseReason.EVICTED)
        if len(self._flows) >= settings.flows:
            next(iter(self._flows.values())).close(CloseReason.EVICTED)
        policy, finder = self.routing.policy, self.routing.finder
        facts = finder.of_datagram(Endpoint(source, 0), Endpoint(key.destination, 0), 0, dscp)
        facts = facts._replace(protocol=Protocol.ICMP)
        decision = policy.settle(facts, finder.now())
        outbound = self.routing.outbounds[decision.way]
        detail = ""
        way: PingSocket | EchoRefusal
        try:
            way = outbound.ping(key.destination)
        except OSError as error:
            detail = error.strerror or str(error)
            if error.errno == errno.EACCES:
                detail = "this process' group is outside net.ipv4.ping_group_range"
            full = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
            way = EchoRefusal.RESOURCES if full else EchoRefusal.UNREACHABLE
        flow = EchoFlow(self, self._next_id, facts, decision, way)
        flow.detail = detail
        self._next_id += self._id_step
        self._flows[key] = flow
        self._keys[flow] = key
        self._of_device[source][flow] = None
        self.count("icmp_flows")
        if isinstance(way, PingSocket):
            self._ours.add((key.destination, way.identifier))
            self._reactor.watch(way.sock.fileno(), flow)
        return flow

    def _refuse(self, why: EchoRefusal, request: Echo, packet: memoryview) -> None:
        if why is EchoRefusal.NOT_CARRIED and self.settings.pretend:
            self.count("icmp_pretended")
            self.answer(EchoReplies(request).packet(request.sequence, request.data))
            return
        self.count(f"icmp_refused_{why}")
        if why in _TOLD:
            self.errors.tell(packet, _TOLD[why])

    def _is_loop(self, request: Echo) -> bool:
        """Whether a request from one of our addresses is one that a flow here has sent."""
        if not self._detect_loops:
            return False
        return not self.own.diverted or (request.destination, request.identifier) in self._ours

    def count(self, what: str) -> None:
        """Count something that has happened."""
        self.counters[what] += 1

    # --- ends --------------------------------------------------------------------------------

    def closed(self, flow: EchoFlow) -> None:
        """Forget a flow that has ended."""
        key = self._keys.pop(flow)
        del self._flows[key]
        if flow.parts is not None:
            self._alike.pop(flow.parts, None)
        device = self._of_device[key.source]
        del device[flow]
        if not device:
            del self._of_device[key.source]
        if isinstance(flow.way, PingSocket):
            self._ours.discard((key.destination, flow.way.identifier))
            self._reactor.close(flow.way.sock)
        self.count(f"icmp_closed_{flow.reason}")
        self.counters["bytes_up"] += flow.bytes_up
        self.counters["bytes_down"] += flow.bytes_down
        self.recent.append(flow)
        self._on_closed(flow)

    def expire(self, now: float) -> None:
        """End what has been quiet too long. ``now``: ``time.monotonic``."""
        for flow in list(self._flows.values()):
            if now - flow.quiet_since >= self.settings.timeout:
                refused = isinstance(flow.way, EchoRefusal)
                flow.close(CloseReason.REJECTED if refused else CloseReason.IDLE_TIMEOUT)

    def close(self) -> None:
        """End every flow, because the gateway ends."""
        for flow in self.live:
            flow.close(CloseReason.SHUTDOWN)
