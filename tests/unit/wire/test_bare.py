"""Packets lose their options, and nothing else; what options forbid is not taken."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.bare import bare
from gateway.wire.ip import TCP, IpPacket, checksum, ip_packet, read_ip

V4 = ip_address("192.168.1.2").packed, ip_address("203.0.113.9").packed
V6 = ip_address("2001:db8::2").packed, ip_address("2001:db8:9::9").packed
BODY = bytes(range(40))

HOP_BY_HOP, ROUTING, FRAGMENT, FOR_DESTINATION, MOBILITY = 0, 43, 44, 60, 135


def with_options(options: bytes) -> bytes:
    """A packet of IPv4; ``options`` are padded to whole words."""
    plain = ip_packet(*V4, TCP, BODY)
    options += bytes(-len(options) % 4)
    size = len(plain) + len(options)
    head = bytes((0x45 + len(options) // 4, 0x28)) + size.to_bytes(2, "big")
    head += plain[4:10] + b"\0\0" + plain[12:20] + options
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + BODY


def extended(*headers: tuple[int, bytes]) -> bytes:
    """A packet of IPv6 with extension headers, each of a kind and what follows its length."""
    chain = b""
    kinds = [*[kind for kind, _ in headers][1:], TCP]
    for (kind, inside), following in zip(headers, kinds, strict=True):
        size = 0 if kind == FRAGMENT else (len(inside) + 2) // 8 - 1
        chain += bytes((following, size)) + inside
    return ip_packet(*V6, headers[0][0], chain + BODY)


def read(packet: bytes) -> IpPacket:
    ip = read_ip(packet)
    assert isinstance(ip, IpPacket), ip
    return ip


def stripped(packet: bytes) -> bytes | None:
    return bare(read(packet), packet)


@pytest.mark.parametrize(
    "options",
    [
        b"\x94\x04\0\0",  # router alert
        b"\x07\x07\x04" + bytes(4),  # record route
        b"\x01\x01\x44\x08\x05\0" + bytes(4),  # timestamp, behind no-operations
        b"\0\x83\xff\xff",  # an end, behind which nothing counts
        b"\xde\x04ab",  # known to nobody
    ],
)
def test_options_of_ipv4_go(options: bytes) -> None:
    packet = with_options(options)
    found = stripped(packet)
    assert found is not None
    ip = read(found)  # which tests the checksum
    assert (ip.transport, found[20:]) == (20, BODY)
    assert (ip.source, ip.destination, ip.ttl, ip.traffic_class) == (*V4, 64, 0x28)


@pytest.mark.parametrize(
    "options",
    [
        b"\x83\x07\x04\xc0\0\2\1",  # a loose source route
        b"\x89\x07\x04\xc0\0\2\1",  # a strict one
        b"\x83\x07\x08\xc0\0\2\1",  # even where it has come to its end
        b"\x07\x01\x04\0",  # shorter than itself
        b"\x07\x09\x04\0",  # longer than the header
        b"\x01\x01\x01\x07",  # without a length
    ],
)
def test_options_of_ipv4_that_forbid_it(options: bytes) -> None:
    assert stripped(with_options(options)) is None


@pytest.mark.parametrize(
    "headers",
    [
        ((HOP_BY_HOP, b"\x05\x02\0\0\0\0"),),  # router alert, and two of padding
        ((FOR_DESTINATION, b"\x01\x04" + bytes(4)),),
        ((FOR_DESTINATION, b"\x1e\x08" + bytes(12)),),  # may be ignored; behind it, padding
        ((ROUTING, b"\x04\0" + bytes(4)),),  # no segment is left
        ((FRAGMENT, bytes(6)),),  # an atomic one (RFC 6946)
        ((HOP_BY_HOP, bytes(6)), (ROUTING, b"\x04\0" + bytes(4)), (FOR_DESTINATION, bytes(14))),
    ],
)
def test_extension_headers_go(headers: tuple[tuple[int, bytes], ...]) -> None:
    found = stripped(extended(*headers))
    assert found is not None
    ip = read(found)
    assert (ip.protocol, ip.transport, found[40:]) == (TCP, 40, BODY)
    assert (ip.source, ip.destination, ip.ttl) == (*V6, 64)


@pytest.mark.parametrize(
    "headers",
    [
        ((ROUTING, b"\0\1" + bytes(20)),),  # one segment is left
        ((FOR_DESTINATION, b"\xc9\x04" + bytes(4)),),  # a home address
        ((HOP_BY_HOP, b"\xc2\x04\0\1\0\0"),),  # a jumbogram
        ((FOR_DESTINATION, b"\x1e\x05" + bytes(4)),),  # longer than its header
        ((FOR_DESTINATION, b"\x01\x03" + bytes(3) + b"\x1e"),),  # without a length
        ((MOBILITY, bytes(6)),),
    ],
)
def test_extension_headers_that_forbid_it(headers: tuple[tuple[int, bytes], ...]) -> None:
    assert stripped(extended(*headers)) is None


@given(options=st.binary(max_size=40), trailing=st.binary(max_size=8))
def test_any_options_of_ipv4(options: bytes, trailing: bytes) -> None:
    packet = with_options(options) + trailing
    found = stripped(packet)
    assert found is None or (read(found).transport, found[20:]) == (20, BODY)


@given(
    kind=st.sampled_from([HOP_BY_HOP, ROUTING, FRAGMENT, FOR_DESTINATION, MOBILITY, 139, 140]),
    inside=st.binary(max_size=80),
)
def test_any_extension_headers(kind: int, inside: bytes) -> None:
    packet = ip_packet(*V6, kind, struct.pack("!B", TCP) + inside + BODY)
    ip = read_ip(packet)
    if not isinstance(ip, IpPacket) or ip.fragment is not None:
        return
    found = bare(ip, packet)
    if found is not None:
        again = read(found)
        assert (again.protocol, again.transport) == (ip.protocol, 40)
        assert found[40:] == packet[ip.transport : ip.end]
