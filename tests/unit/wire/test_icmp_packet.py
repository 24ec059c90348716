"""ICMP in whole packets: requests read, replies and errors made."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.wire.icmp_error import IcmpError, checksum
from gateway.wire.icmp_packet import (
    Echo,
    EchoReplies,
    NoEcho,
    error_packet,
    icmp_packet,
    next_header_at,
    raw_error_packet,
    read_echo,
    read_error,
    sent_datagram,
    sent_request,
)
from gateway.wire.ip import ICMP, ICMPV6, UDP, IpPacket, ip_packet, read_ip, read_udp, udp_packet

V4 = ("192.168.10.2", "203.0.113.5")
V6 = ("2001:db8:10::2", "2001:db8:113::5")
ENDS = st.sampled_from([V4, V6])
NUMBERS = st.integers(0, 0xFFFF)


def packed(packet: bytes) -> IpPacket:
    """The IP header of what must be a packet."""
    ip = read_ip(packet)
    assert isinstance(ip, IpPacket)
    return ip


def request(ends: tuple[str, str], message: bytes) -> bytes:
    """A packet with an ICMP message, the checksum filled in."""
    source, destination = (ip_address(end).packed for end in ends)
    v6 = len(source) == 16
    pseudo = source + destination + len(message).to_bytes(4, "big") + bytes([0, 0, 0, ICMPV6])
    check = checksum((pseudo if v6 else b"") + message).to_bytes(2, "big")
    message = message[:2] + check + message[4:]
    return ip_packet(source, destination, ICMPV6 if v6 else ICMP, message, ttl=17)


def echo_of(ends: tuple[str, str], identifier: int, sequence: int, data: bytes) -> bytes:
    kind = 128 if ":" in ends[0] else 8
    head = bytes([kind, 0, 0, 0]) + identifier.to_bytes(2, "big") + sequence.to_bytes(2, "big")
    return request(ends, head + data)


@given(ENDS, NUMBERS, NUMBERS, st.binary(max_size=300))
def test_a_request_is_read_and_answered(
    ends: tuple[str, str], identifier: int, sequence: int, data: bytes
) -> None:
    packet = echo_of(ends, identifier, sequence, data)
    echo = read_echo(packed(packet), packet)
    assert echo == Echo(*ends, identifier, sequence, 17, True, data)
    assert isinstance(echo, Echo)
    replies = EchoReplies(echo)
    replies.packet(sequence, data + b"!", 51)
    answer = replies.packet(sequence, data, 51)
    ip = packed(answer)
    message = answer[ip.transport : ip.end]
    assert (ip.source, ip.destination) == tuple(ip_address(e).packed for e in reversed(ends))
    assert (ip.ttl, ip.end) == (51, len(answer))
    head = struct.unpack_from("!BBHHH", answer, ip.transport)
    assert head[:2] == (129 if ip.family == 6 else 0, 0)
    assert head[3:] == (identifier, sequence)
    assert message[8:] == data
    pseudo = ip.source + ip.destination + len(message).to_bytes(4, "big") + bytes([0, 0, 0, ICMPV6])
    assert checksum((pseudo if ip.family == 6 else b"") + message) == 0


@given(ENDS, st.binary(max_size=100), st.integers(0, 99), st.integers(1, 255))
def test_a_request_that_was_changed_on_its_way_is_none(
    ends: tuple[str, str], data: bytes, place: int, change: int
) -> None:
    packet = bytearray(echo_of(ends, 1, 2, data))
    at = packed(bytes(packet)).transport + 4 + place % (4 + len(data))
    packet[at] ^= change
    assert read_echo(packed(bytes(packet)), packet) is NoEcho.CHECKSUM


@given(ENDS, st.binary(max_size=80))
def test_whatever_icmp_carries_is_an_echo_or_named(ends: tuple[str, str], message: bytes) -> None:
    source, destination = (ip_address(end).packed for end in ends)
    packet = ip_packet(source, destination, ICMPV6 if ":" in ends[0] else ICMP, message)
    assert isinstance(read_echo(packed(packet), packet), Echo | NoEcho)


@pytest.mark.parametrize(
    ("ends", "kind", "why"),
    [
        (V4, 3, NoEcho.ERROR),
        (V4, 11, NoEcho.ERROR),
        (V4, 0, NoEcho.OTHER),
        (V4, 13, NoEcho.OTHER),
        (V4, 128, NoEcho.OTHER),
        (V6, 1, NoEcho.ERROR),
        (V6, 127, NoEcho.ERROR),
        (V6, 129, NoEcho.OTHER),
        (V6, 8, NoEcho.ERROR),
    ],
)
def test_what_else_there_is(ends: tuple[str, str], kind: int, why: NoEcho) -> None:
    packet = request(ends, bytes([kind]) + bytes(7))
    assert read_echo(packed(packet), packet) is why
    told = error_packet(packet, IcmpError.PROHIBITED)
    assert (told is None) == (why is NoEcho.ERROR)


def test_who_may_fragment_a_request() -> None:
    packet = bytearray(echo_of(V4, 1, 1, b""))
    assert packet[6] == 0x40
    packet[6] = 0
    packet[10:12] = b"\0\0"
    packet[10:12] = checksum(bytes(packet[:20])).to_bytes(2, "big")
    for whole, data, reassembled in (
        (False, bytes(packet), False),
        (True, echo_of(V6, 1, 1, b""), False),
        (False, echo_of(V6, 1, 1, b""), True),
    ):
        echo = read_echo(packed(data), data, reassembled=reassembled)
        assert isinstance(echo, Echo)
        assert echo.whole is whole


@given(ENDS, st.sampled_from(IcmpError), st.integers(0, 0xFFFF), st.binary(max_size=2000))
def test_an_error_quotes_what_it_is_about(
    ends: tuple[str, str], error: IcmpError, info: int, data: bytes
) -> None:
    about = echo_of(ends, 7, 8, data)
    told = error_packet(about, error, info=info)
    assert told is not None
    ip = packed(told)
    assert len(told) <= (1280 if ip.family == 6 else 576)
    message = told[ip.transport :]
    assert tuple(message[:2]) == error.value[ip.family == 6]
    assert int.from_bytes(message[4:8], "big") == info
    assert about.startswith(message[8:])
    assert len(message[8:]) >= min(len(about), 500)
    assert ip.source == ip_address(ends[1]).packed
    assert ip.destination == ip_address(ends[0]).packed


def test_an_error_comes_from_who_tells_it() -> None:
    told = raw_error_packet(echo_of(V4, 1, 1, b""), (11, 0), source="198.51.100.1")
    assert told is not None
    assert packed(told).source == ip_address("198.51.100.1").packed


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("0.0.0.0", V4[1]),
        (V4[0], "224.0.0.5"),
        (V4[0], "255.255.255.255"),
        ("::", V6[1]),
        (V6[0], "ff02::1"),
    ],
)
def test_no_error_about_what_is_not_between_two_hosts(source: str, destination: str) -> None:
    about = sent_datagram(source, destination, (1, 2))
    assert error_packet(about, IcmpError.PORT_UNREACHABLE) is None


@given(st.binary(max_size=200))
def test_no_error_about_what_is_no_packet(data: bytes) -> None:
    assume(len(data) > 0)
    told = error_packet(data, IcmpError.PROHIBITED)
    assert told is None or isinstance(packed(told), IpPacket)


@given(ENDS, NUMBERS, NUMBERS)
def test_what_is_quoted_of_what_has_gone(
    ends: tuple[str, str], identifier: int, sequence: int
) -> None:
    echo = Echo(*ends, identifier, 3, 64, True, b"0123456789")
    quoted = sent_request(echo, sequence)
    ip = packed(quoted)
    assert struct.unpack_from("!HH", quoted, ip.transport + 4) == (identifier, sequence)
    datagram = sent_datagram(*ends, (identifier, sequence or 1))
    assert packed(datagram).protocol == UDP
    assert read_udp(datagram, packed(datagram))[:2] == (identifier, sequence or 1)


def test_where_the_number_of_a_protocol_stands() -> None:
    source, destination = (ip_address(end).packed for end in V6)
    plain = ip_packet(source, destination, 47, bytes(8))
    assert next_header_at(packed(plain), plain) == 6
    # Behind two headers of destination options, 8 and 16 bytes long.
    options = bytes([60, 0]) + bytes(6) + bytes([47, 1]) + bytes(14)
    behind = ip_packet(source, destination, 60, options + bytes(8))
    at = next_header_at(packed(behind), behind)
    assert (at, behind[at]) == (48, 47)
    old = ip_packet(*(ip_address(end).packed for end in V4), 47, bytes(8))
    assert next_header_at(packed(old), old) == 9


@given(ENDS, st.sampled_from(IcmpError), NUMBERS, NUMBERS, st.binary(max_size=1500))
def test_an_error_is_read_and_told_of_other_ends(
    ends: tuple[str, str], error: IcmpError, one: int, other: int, data: bytes
) -> None:
    source, destination = (ip_address(end).packed for end in ends)
    about = udp_packet(source, one, destination, other, data)
    packet = error_packet(about, error, info=1280, source=ends[1])
    assert packet is not None
    read = read_error(packed(packet), packet)
    assert read is not None
    ports = struct.pack("!HH", one, other)
    assert (read.protocol, read.ends) == (UDP, source + destination + ports)
    swapped = destination + source + ports[2:] + ports[:2]
    again = icmp_packet(*ends, read.about(swapped))
    told = read_error(packed(again), again)
    assert told is not None
    assert told.ends == swapped
    assert told.about(read.ends) == read.about(read.ends)


@given(ENDS, st.integers(0, 0xFFFF_FFFF), st.sampled_from(list(IcmpError)))
def test_what_is_too_big_is_known_by_its_size(
    ends: tuple[str, str], mtu: int, kind: IcmpError
) -> None:
    source, destination = (ip_address(end).packed for end in ends)
    packet = error_packet(udp_packet(source, 1, destination, 2, bytes(8)), kind, info=mtu)
    assert packet is not None
    read = read_error(packed(packet), packet)
    assert read is not None
    # Of IPv4, the sender forbids to cut it; we never do.
    assert read.too_big == (mtu if kind is IcmpError.TOO_BIG and ":" in ends[0] else 0)


@given(ENDS, st.binary(max_size=200), st.sampled_from([2, 3, 4, 5, 11, 12]), st.booleans())
def test_whatever_icmp_quotes_is_read_as_far_as_it_can_be(
    ends: tuple[str, str], quoted: bytes, kind: int, plain: bool
) -> None:
    first = b"\x60" if ":" in ends[0] else b"\x45"
    quoted = (first if plain else b"") + quoted
    message = bytes([kind]) + bytes(7) + quoted
    packet = request(ends, message)
    read = read_error(packed(packet), packet)
    if read is not None:
        # Of IPv6's first byte the lower half is of the traffic class (RFC 8200 section 3).
        assert quoted[0] >> 4 == 6 if ":" in ends[0] else quoted[:1] == first
        assert len(read.about(read.ends)) == len(message)


@pytest.mark.parametrize(
    "spoilt", ["checksum", "redirect", "options", "a later fragment", "short", "echo"]
)
def test_what_is_no_error_about_a_plain_packet(spoilt: str) -> None:
    source, destination = (ip_address(end).packed for end in V4)
    about = bytearray(udp_packet(source, 1, destination, 2, bytes(8)))
    kind = {"redirect": 5, "echo": 8}.get(spoilt, 3)
    if spoilt == "options":
        about[0] = 0x46
    elif spoilt == "a later fragment":
        about[7] = 9
    elif spoilt == "short":
        del about[27:]
    packet = bytearray(request(V4, bytes([kind, 4, 0, 0, 0, 0, 5, 0]) + about))
    if spoilt == "checksum":
        packet[-1] ^= 1
    assert read_error(packed(packet), packet) is None
