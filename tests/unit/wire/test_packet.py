"""Packets' headers, as the RFCs draw them, and any bytes at all."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.packet import ICMPV6, TCP, UDP, Packet, read_packet

V4, V6 = ip_address("192.0.2.1").packed, ip_address("2001:db8::1").packed
TO_V4, TO_V6 = ip_address("198.51.100.7").packed, ip_address("2001:db8::7").packed
PORTS = struct.pack("!HH", 50000, 443) + bytes(16)


def v4(protocol: int, behind: bytes, *, options: bytes = b"", offset: int = 0) -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack("!BBHHHBBH", 0x40 | words, 46 << 2, 0, 0, offset, 64, protocol, 0)
    return head + V4 + TO_V4 + options + behind


def v6(protocol: int, behind: bytes) -> bytes:
    return struct.pack("!IHBB", 6 << 28 | 46 << 22, len(behind), protocol, 64) + V6 + TO_V6 + behind


def test_ports_stand_behind_the_header_whatever_its_length() -> None:
    assert read_packet(v4(TCP, PORTS)) == Packet(TCP, V4, TO_V4, 50000, 443, 46, 20)
    assert read_packet(v4(UDP, PORTS, options=bytes(8))) == Packet(
        UDP, V4, TO_V4, 50000, 443, 46, 28
    )
    assert read_packet(v6(UDP, PORTS)) == Packet(UDP, V6, TO_V6, 50000, 443, 46, 40)


def test_extension_headers_are_skipped() -> None:
    hop_by_hop = bytes((60, 1)) + bytes(14)
    destination = bytes((TCP, 0)) + bytes(6)
    data = v6(0, hop_by_hop + destination + PORTS)
    assert read_packet(data) == Packet(TCP, V6, TO_V6, 50000, 443, 46, 64)


def test_other_protocols_have_no_ports() -> None:
    assert read_packet(v6(ICMPV6, b"\x80\x00")) == Packet(ICMPV6, V6, TO_V6, 0, 0, 46, 40)


def test_a_fragment_has_no_ports_to_read() -> None:
    assert read_packet(v4(UDP, PORTS, offset=185)) is None


def test_every_shorter_packet_is_none() -> None:
    for whole in (v4(TCP, PORTS), v6(UDP, PORTS)):
        ports_end = len(whole) - len(PORTS) + 8
        assert all(read_packet(whole[:length]) is None for length in range(ports_end))


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x45", b"\x60"]))
def test_any_bytes_are_a_packet_or_none(data: bytes, start: bytes) -> None:
    found = read_packet(start + data)
    if found is not None:
        assert (start + data)[found.transport :] or found.protocol not in (TCP, UDP)
        assert len(found.source) == len(found.destination) in (4, 16)
