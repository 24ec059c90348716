"""Echo requests that go nowhere: refused, pretended, bounded, or going round."""

from __future__ import annotations

import errno
import struct
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.facts import FactFinder
from gateway.flow import CloseReason, Protocol
from gateway.icmp.echoes import Echoes
from gateway.icmp.errors import MOST_PER_DEVICE, ErrorWriter
from gateway.icmp.flow import EchoFlow
from gateway.icmp.limits import EchoSettings, Rate
from gateway.icmp.others import OtherProtocols
from gateway.kernel.ping_sockets import PingSocket
from gateway.outbound.base import EchoRefusal
from gateway.policy.engine import Policy
from gateway.policy.rule import CompiledRule
from gateway.routing import FlowTimeouts, OwnTraffic, Routing
from gateway.sniffing import SniffLimits
from gateway.wire.icmp_error import IcmpError, checksum
from gateway.wire.icmp_packet import NoEcho
from gateway.wire.ip import ICMP, ICMPV6, VNET_BYTES, IpPacket, Vnet, ip_packet, read_ip

CLIENT = {4: "192.168.10.2", 6: "2001:db8:10::2"}
FAR = {4: "203.0.113.5", 6: "2001:db8:113::5"}
SELF = {4: "192.168.10.1", 6: "2001:db8:10::1"}
HOP = {4: "172.29.88.2", 6: "fd00:88::2"}
SETTINGS = EchoSettings(10, 16, 8, 100, 50)


class Refusing:
    """An outbound that answers as it is told to."""

    def __init__(self, answer: EchoRefusal | OSError) -> None:
        self.answer = answer

    def ping(self, host: str) -> EchoRefusal:
        del host
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


class Rig:
    """Echoes whose one outbound refuses everything, and what they write."""

    def __init__(
        self,
        answer: EchoRefusal | OSError = EchoRefusal.NOT_CARRIED,
        settings: EchoSettings = SETTINGS,
        *,
        diverted: bool = False,
    ) -> None:
        self.written: list[bytes] = []
        self.closed: list[EchoFlow] = []
        policy = Policy([CompiledRule(0, "rules[0] -> way", "way")])
        outbounds: Any = {"way": Refusing(answer)}
        routing = Routing(policy, outbounds, FlowTimeouts(1, 1, 1), SniffLimits(), FactFinder())
        own = OwnTraffic(frozenset(SELF.values()), diverted)
        self.counters: Counter[str] = Counter()
        self.errors = ErrorWriter(self.written.append, own.addresses, self.counters, HOP)
        reactor: Any = SimpleNamespace()
        self.echoes = Echoes(
            reactor, routing, settings, own, self.errors, self.written.append, self.closed.append
        )

    def take(self, packet: bytes) -> str | None:
        ip = read_ip(packet)
        assert isinstance(ip, IpPacket)
        return self.echoes.take(ip, Vnet(), memoryview(packet))

    def said(self) -> list[tuple[int, int, str]]:
        """Type, code and source of what was written, which is forgotten."""
        found = []
        for packet in self.written:
            ip = read_ip(packet)
            assert isinstance(ip, IpPacket)
            found.append(
                (packet[ip.transport], packet[ip.transport + 1], str(ip_address(ip.source)))
            )
        self.written.clear()
        return found


def ping(
    family: int, source: str, *, sequence: int = 1, identifier: int = 7, ttl: int = 64
) -> bytes:
    ends = [ip_address(end).packed for end in (source, FAR[family])]
    head = bytes([128 if family == 6 else 8, 0, 0, 0])
    message = head + identifier.to_bytes(2, "big") + sequence.to_bytes(2, "big") + b"payload"
    pseudo = ends[0] + ends[1] + len(message).to_bytes(4, "big") + bytes([0, 0, 0, ICMPV6])
    check = checksum((pseudo if family == 6 else b"") + message)
    message = message[:2] + check.to_bytes(2, "big") + message[4:]
    return ip_packet(*ends, ICMPV6 if family == 6 else ICMP, message, ttl=ttl)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("answer", "error", "counter"),
    [
        (EchoRefusal.NOT_CARRIED, IcmpError.PROHIBITED, "not-carried"),
        (EchoRefusal.REJECTED, IcmpError.PROHIBITED, "rejected"),
        (EchoRefusal.SILENT, None, "silent"),
        (EchoRefusal.UNREACHABLE, IcmpError.NET_UNREACHABLE, "unreachable"),
        (OSError(errno.ENETUNREACH, "no way"), IcmpError.NET_UNREACHABLE, "unreachable"),
        (OSError(errno.EMFILE, "too many"), None, "no-resources"),
    ],
)
def test_a_request_that_goes_nowhere_is_answered_by_an_error(
    family: int, answer: EchoRefusal | OSError, error: IcmpError | None, counter: str
) -> None:
    rig = Rig(answer)
    for sequence in (1, 2):
        assert rig.take(ping(family, CLIENT[family], sequence=sequence)) is None
        expected = [(*error.value[family == 6], FAR[family])] if error else []
        assert rig.said() == expected
    assert rig.echoes.counters[f"icmp_refused_{counter}"] == 2
    (flow,) = rig.echoes.live
    assert (flow.record().protocol, flow.record().client.host) == (Protocol.ICMP, CLIENT[family])
    rig.echoes.expire(flow.quiet_since + 9)
    assert rig.echoes.live_count == 1
    rig.echoes.expire(flow.quiet_since + 10)
    assert [closed.reason for closed in rig.closed] == [CloseReason.REJECTED]
    assert rig.echoes.live_count == 0


@pytest.mark.parametrize("family", [4, 6])
def test_the_gateway_answers_itself_only_where_it_is_told_to(family: int) -> None:
    rig = Rig(settings=SETTINGS._replace(pretend=True))
    rig.take(ping(family, CLIENT[family], sequence=300))
    (answer,) = rig.written
    ip = read_ip(answer)
    assert isinstance(ip, IpPacket)
    head = struct.unpack_from("!BBHHH", answer, ip.transport)
    assert head[:2] == (129 if family == 6 else 0, 0)
    assert head[3:] == (7, 300)
    assert answer.endswith(b"payload")
    rejecting = Rig(EchoRefusal.REJECTED, SETTINGS._replace(pretend=True))
    rejecting.take(ping(family, CLIENT[family]))
    assert rejecting.said() == [(*IcmpError.PROHIBITED.value[family == 6], FAR[family])]


@pytest.mark.parametrize("family", [4, 6])
def test_too_many_a_second_are_dropped(family: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.icmp.echoes.time.monotonic", lambda: 7.5)
    rig = Rig(EchoRefusal.SILENT)
    others = {4: "192.168.10.{}", 6: "2001:db8:10::{}"}[family]
    dropped = Counter(
        rig.take(ping(family, others.format(10 + number % 2))) for number in range(200)
    )
    assert dropped["icmp_rate"] == 100
    rate = Rate()
    assert [rate.allows("a", 3, 2, 0.5) for _ in range(3)] == [True, True, False]
    assert [rate.allows("b", 3, 2, 0.9) for _ in range(2)] == [True, False]
    assert rate.allows("b", 3, 2, 1.0)


def test_the_oldest_makes_room() -> None:
    rig = Rig(EchoRefusal.SILENT)
    for number in range(12):
        rig.take(ping(4, CLIENT[4], identifier=number))
    assert (rig.echoes.live_count, len(rig.closed)) == (8, 4)
    for number in range(12):
        rig.take(ping(4, f"192.168.10.{100 + number}"))
    assert rig.echoes.live_count == 16
    assert {flow.reason for flow in rig.closed} == {CloseReason.EVICTED}


@pytest.mark.parametrize("family", [4, 6])
def test_what_this_machine_sends_ends_when_it_goes_round(family: int) -> None:
    rig = Rig(EchoRefusal.SILENT, diverted=True)
    assert rig.take(ping(family, SELF[family], ttl=2)) is None
    assert rig.take(ping(family, SELF[family], ttl=1)) == "icmp_expired"
    assert rig.said() == [(*IcmpError.TIME_EXCEEDED.value[family == 6], HOP[family])]
    # The kernel has counted the hop of what it forwarded.
    assert rig.take(ping(family, CLIENT[family], ttl=1)) is None
    undiverted = Rig(EchoRefusal.SILENT)
    assert undiverted.take(ping(family, SELF[family])) == "icmp_loop"
    assert undiverted.written == []


@pytest.mark.parametrize("family", [4, 6])
def test_other_messages(family: int) -> None:
    rig = Rig()
    ends = [ip_address(end).packed for end in (CLIENT[family], FAR[family])]
    protocol = ICMPV6 if family == 6 else ICMP
    for kind, why, told in (
        ({4: 13, 6: 139}[family], NoEcho.OTHER, 1),
        ({4: 3, 6: 1}[family], NoEcho.ERROR, 0),
    ):
        assert rig.take(ip_packet(*ends, protocol, bytes([kind]) + bytes(7))) is why
        assert len(rig.said()) == told
    assert rig.take(ip_packet(*ends, protocol, b"\x08")) is NoEcho.SHORT


@pytest.mark.parametrize("family", [4, 6])
def test_other_protocols_are_refused_by_their_number(
    family: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.icmp.errors.time.monotonic", lambda: 7.5)
    rig = Rig()
    ends = [ip_address(end).packed for end in (CLIENT[family], FAR[family])]
    packet = ip_packet(*ends, 47, bytes(8))
    ip = read_ip(packet)
    assert isinstance(ip, IpPacket)
    others = OtherProtocols(rig.errors)
    assert others.take(ip, Vnet(), memoryview(packet)) == "protocol"
    (answer,) = rig.written
    head = {4: 20, 6: 40}[family]
    assert tuple(answer[head : head + 2]) == IcmpError.PROTOCOL_UNREACHABLE.value[family == 6]
    assert int.from_bytes(answer[head + 4 : head + 8], "big") == {4: 0, 6: 6}[family]
    for _ in range(MOST_PER_DEVICE):
        others.take(ip, Vnet(), memoryview(packet))
    assert len(rig.written) == MOST_PER_DEVICE
    assert rig.counters["icmp_errors_unsent"] == 1


class Socket:
    """Takes what is sent; fails where it is told to."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.failures: list[OSError] = []

    def send(self, message: bytes) -> None:
        if self.failures:
            raise self.failures.pop()
        self.sent.append(bytes(message))


class Pinging(PingSocket):
    """A ping socket on nothing."""

    def __init__(self) -> None:
        self.sock: Any = Socket()
        self.identifier = 4711

    def send(self, message: bytes, hop_limit: int, *, whole: bool) -> None:
        del hop_limit, whole
        self.sock.send(message)

    def path_mtu(self) -> int:
        return 1280


class Repeating(Rig):
    """Echoes that go onward by sockets on nothing; packets come in a TUN's frames."""

    def __init__(self, settings: EchoSettings = SETTINGS) -> None:
        super().__init__(settings=settings)
        self.sockets: list[Pinging] = []
        outbound = SimpleNamespace(ping=self._ping)
        reactor: Any = SimpleNamespace(watch=lambda *_: None, close=lambda _: None)
        self.echoes.routing.outbounds["way"] = outbound  # type: ignore[index]
        self.echoes._reactor = reactor

    def _ping(self, host: str) -> Pinging:
        del host
        made = Pinging()
        made.sock.fileno = lambda: 9
        self.sockets.append(made)
        return made

    def repeat(self, packet: bytes, undone: bytes = bytes(VNET_BYTES)) -> bool:
        frame = bytearray(undone + packet + b"what an earlier packet has left")
        return self.echoes.repeat(frame, VNET_BYTES + len(packet))


@pytest.mark.parametrize("family", [4, 6])
def test_requests_like_the_first_are_sent_on_without_being_parsed(family: int) -> None:
    rig = Repeating()
    assert not rig.repeat(ping(family, CLIENT[family])), "nobody knows it yet"
    assert rig.take(ping(family, CLIENT[family], sequence=1)) is None
    (way,) = rig.sockets
    for sequence in (2, 3, 65_535):
        packet = ping(family, CLIENT[family], sequence=sequence)
        assert rig.repeat(packet)
        message = packet[48 if family == 6 else 28 :]
        assert way.sock.sent[-1][8:] == message
        assert int.from_bytes(way.sock.sent[-1][6:8], "big") == sequence
    assert rig.echoes.counters["icmp_echo_requests"] == 4
    (flow,) = rig.echoes.live
    assert flow.bytes_up == 4 * len(b"payload")


@pytest.mark.parametrize("family", [4, 6])
def test_requests_unlike_the_last_are_parsed(family: int) -> None:
    rig = Repeating()
    first = ping(family, CLIENT[family])
    rig.take(first)
    other = {4: "192.168.10.3", 6: "2001:db8:10::3"}[family]
    changed = bytearray(first)
    changed[-1] ^= 1
    for packet in (
        ping(family, other),
        ping(family, CLIENT[family], identifier=8),
        ping(family, CLIENT[family], ttl=63),
        bytes(changed),
        first[:-1],
        first + b"!",
        first[: 30 if family == 6 else 24],
        b"",
    ):
        assert not rig.repeat(packet)
    assert not rig.repeat(first, bytes([1]) + bytes(VNET_BYTES - 1)), "its checksum is not made"
    assert rig.take(ping(family, CLIENT[family], ttl=63)) is None
    assert rig.repeat(ping(family, CLIENT[family], ttl=63))
    assert not rig.repeat(first), "hops are counted by what the socket was last told"


@pytest.mark.parametrize("family", [4, 6])
def test_nothing_is_repeated_once_a_flow_or_its_configuration_is_over(family: int) -> None:
    rig = Repeating()
    packet = ping(family, CLIENT[family])
    rig.take(packet)
    rig.echoes.adopt(rig.echoes.routing, SETTINGS, rig.echoes.own)
    assert not rig.repeat(packet)
    rig.take(packet)
    assert rig.repeat(packet)
    rig.echoes.close()
    assert not rig.repeat(packet)
    rig.take(ping(family, SELF[family]))
    assert not rig.repeat(ping(family, SELF[family])), "what this machine sends is looked at"


def test_rules_with_dscp_hold_for_pings() -> None:
    """Each flow by its first request; those of another class are another's, or parsed again."""
    rig = Repeating()
    rules = [
        CompiledRule(0, "rules[0] -> fast", "fast", dscps=(46,)),
        CompiledRule(1, "rules[1] -> way", "way"),
    ]
    policy = Policy(rules)
    routing = replace(rig.echoes.routing, policy=policy, finder=FactFinder(policy.needs))
    outbounds: Any = routing.outbounds
    outbounds["fast"] = outbounds["way"]
    rig.echoes.adopt(routing, SETTINGS, rig.echoes.own)
    for identifier, dscp in enumerate((46, 0)):
        packet = bytearray(ping(6, CLIENT[6], identifier=identifier))
        packet[:2] = (6 << 12 | dscp << 6).to_bytes(2, "big")
        assert rig.take(bytes(packet)) is None
    assert [flow.decision.way for flow in rig.echoes.live] == ["fast", "way"]


def test_what_is_repeated_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.icmp.echoes.time.monotonic", lambda: 1000.0)
    rig = Repeating(SETTINGS._replace(rate_per_device=3))
    packet = ping(4, CLIENT[4])
    rig.take(packet)
    assert [rig.repeat(packet) for _ in range(4)] == [True, True, False, False]
    assert rig.take(packet) == "icmp_rate"
    assert len(rig.sockets[0].sock.sent) == 3


@pytest.mark.parametrize("family", [4, 6])
def test_an_error_about_what_was_repeated_quotes_that(family: int) -> None:
    rig = Repeating()
    rig.take(ping(family, CLIENT[family], sequence=1))
    packet = ping(family, CLIENT[family], sequence=2)
    rig.sockets[0].sock.failures = [OSError(errno.EMSGSIZE, "too long")] * 2
    assert not rig.repeat(packet)
    assert rig.take(packet) is None
    (told,) = rig.written
    ip = read_ip(told)
    assert isinstance(ip, IpPacket)
    assert told[ip.transport :][:2] == bytes(IcmpError.TOO_BIG.value[family == 6])
    quoted = told[ip.transport + 8 + (40 if family == 6 else 20) :]
    assert int.from_bytes(quoted[6:8], "big") == 2
    assert len(rig.sockets[0].sock.sent) == 1
