"""Packets of a TUN: headers read strictly, checksums amended, packets made anew."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.wire.ip import (
    ACK,
    FIN,
    NEEDS_CSUM,
    NO_OFFLOAD,
    RST,
    SYN,
    TCP,
    UDP,
    Fragment,
    IpPacket,
    Malformed,
    TcpHeader,
    UdpHeader,
    Vnet,
    checksum,
    delta,
    fold,
    ip_packet,
    read_ip,
    read_tcp,
    read_udp,
    read_vnet,
    tcp_reset,
    transport_checksum,
    udp_packet,
)

V4, TO_V4 = ip_address("192.0.2.1").packed, ip_address("198.51.100.7").packed
V6, TO_V6 = ip_address("2001:db8::1").packed, ip_address("2001:db8::7").packed
BOTH = pytest.mark.parametrize(("source", "destination"), [(V4, TO_V4), (V6, TO_V6)])


def header(packet: bytes) -> IpPacket:
    found = read_ip(packet)
    assert isinstance(found, IpPacket), found
    return found


def with_part(packet: bytes, part: int) -> bytes:
    """An IPv4 packet with other flags and fragment offset, its checksum mended."""
    packet = packet[:6] + struct.pack("!H", part) + packet[8:10] + bytes(2) + packet[12:]
    return packet[:10] + struct.pack("!H", checksum(packet[:20])) + packet[12:]


def segment(flags: int, sequence: int = 7, acknowledgement: int = 9) -> bytes:
    return struct.pack("!HHIIBBHHH", 1000, 443, sequence, acknowledgement, 5 << 4, flags, 512, 0, 0)


# --- headers ------------------------------------------------------------------------------------


@BOTH
def test_what_is_made_is_read(source: bytes, destination: bytes) -> None:
    packet = udp_packet(source, 5000, destination, 53, b"odd")
    ip = header(packet)
    family, at = (4, 20) if len(source) == 4 else (6, 40)
    assert ip == IpPacket(family, UDP, source, destination, 64, at, len(packet), None, 0)
    udp = read_udp(packet, ip)
    assert isinstance(udp, UdpHeader)
    assert (udp.source, udp.destination, udp.length) == (5000, 53, 11)
    # With its checksum in place, all sums up to nothing (RFC 1071 section 1).
    assert transport_checksum(source, destination, UDP, packet[at:]) == 0xFFFF


def test_what_follows_a_packet_is_not_part_of_it() -> None:
    packet = udp_packet(V4, 1, TO_V4, 2, b"")
    assert header(packet + b"padding").end == len(packet)


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (b"", Malformed.SHORT),
        (b"\x45" + bytes(18), Malformed.SHORT),
        (b"\x60" + bytes(38), Malformed.SHORT),
        (b"\x50" + bytes(60), Malformed.VERSION),
        (b"\x44" + bytes(60), Malformed.LENGTH),
        (ip_packet(V4, TO_V4, UDP, bytes(8))[:-1], Malformed.LENGTH),
        (ip_packet(V6, TO_V6, UDP, bytes(8))[:-1], Malformed.LENGTH),
        (ip_packet(V4, TO_V4, UDP, bytes(8)).replace(V4, TO_V4), Malformed.CHECKSUM),
        (ip_packet(V6, TO_V6, 0, bytes((17, 1)) + bytes(6)), Malformed.EXTENSIONS),
        (ip_packet(V6, TO_V6, 60, bytes((60, 0, 0, 0, 0, 0, 0, 0)) * 9), Malformed.EXTENSIONS),
        (ip_packet(V6, TO_V6, 44, bytes(4)), Malformed.EXTENSIONS),
        (ip_packet(V6, TO_V6, 59, b""), Malformed.TRANSPORT),
        # Beyond 64 KiB once put together (the "ping of death"), and parts that leave gaps.
        (with_part(ip_packet(V4, TO_V4, UDP, bytes(80)), 0x1FFF), Malformed.LENGTH),
        (with_part(ip_packet(V4, TO_V4, UDP, bytes(9)), 0x2000), Malformed.LENGTH),
        (ip_packet(V6, TO_V6, 44, struct.pack("!BBHI9x", UDP, 0, 1, 7)), Malformed.LENGTH),
    ],
)
def test_what_is_no_packet_is_named(packet: bytes, why: Malformed) -> None:
    assert read_ip(packet) is why


def test_extension_headers_lead_to_what_is_carried() -> None:
    hop_by_hop = bytes((60, 1)) + bytes(14)
    options = bytes((TCP, 0)) + bytes(6)
    ip = header(ip_packet(V6, TO_V6, 0, hop_by_hop + options + segment(SYN)))
    assert (ip.protocol, ip.transport) == (TCP, 64)


def test_fragments_are_known() -> None:
    first = with_part(ip_packet(V4, TO_V4, UDP, bytes(16)), 0x2000)
    last = with_part(ip_packet(V4, TO_V4, UDP, bytes(3)), 2)
    assert header(first).fragment == Fragment(0, 0, more=True)
    assert header(last).fragment == Fragment(0, 16, more=False)
    assert header(with_part(last, 0x4000)).fragment is None  # DF
    v6 = ip_packet(V6, TO_V6, 44, struct.pack("!BBHI", UDP, 0, 16, 7) + b"end")
    assert header(v6).fragment == Fragment(7, 16, more=False)
    atomic = ip_packet(V6, TO_V6, 44, struct.pack("!BBHI", UDP, 0, 0, 7) + bytes(8))
    assert (header(atomic).fragment, header(atomic).transport) == (None, 48)


def test_the_middle_of_a_fragment_is_not_taken_for_a_header() -> None:
    part = struct.pack("!BBHI", 60, 0, 8, 7) + b"\xff" * 8
    assert header(ip_packet(V6, TO_V6, 44, part)).protocol == 60


@BOTH
def test_transports_that_are_cut_off_are_named(source: bytes, destination: bytes) -> None:
    for protocol, read, size in ((TCP, read_tcp, 20), (UDP, read_udp, 8)):
        packet = ip_packet(source, destination, protocol, bytes(size - 1))
        assert read(packet, header(packet)) is Malformed.TRANSPORT


def test_a_tcp_header_must_fit() -> None:
    for size in (4, 6):  # in words: less than a header, more than there is
        data = segment(ACK)[:12] + bytes((size << 4,)) + segment(ACK)[13:]
        packet = ip_packet(V4, TO_V4, TCP, data)
        assert read_tcp(packet, header(packet)) is Malformed.TRANSPORT
    packet = ip_packet(V4, TO_V4, TCP, segment(ACK))
    assert read_tcp(packet, header(packet)) == TcpHeader(1000, 443, 7, 9, 20, ACK)


def test_a_datagram_longer_than_its_packet_is_none() -> None:
    for length in (7, 9):
        packet = ip_packet(V4, TO_V4, UDP, struct.pack("!HHHH", 1, 2, length, 0))
        assert read_udp(packet, header(packet)) is Malformed.TRANSPORT


def test_the_header_in_front() -> None:
    vnet = Vnet(NEEDS_CSUM, 1, 54, 1448, 34, 16)
    assert read_vnet(vnet.pack() + b"packet") == vnet
    assert Vnet().pack() == NO_OFFLOAD


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x45", b"\x60", b"\x46"]))
@example(ip_packet(V6, TO_V6, 44, struct.pack("!BBHI", UDP, 0, 1, 7) + bytes(8))[1:], b"\x60")
def test_any_bytes_are_a_packet_or_a_reason(data: bytes, start: bytes) -> None:
    packet = memoryview(start + data)
    ip = read_ip(packet)
    if isinstance(ip, Malformed):
        return
    assert ip.transport <= ip.end <= len(packet)
    for read in (read_tcp, read_udp):
        read(packet, ip)


@given(
    st.binary(max_size=80),
    st.sampled_from([0, 43, 44, 60, 135, TCP, UDP]),
    st.sampled_from([(V4, TO_V4), (V6, TO_V6)]),
)
def test_any_contents_are_read_or_named(
    data: bytes, protocol: int, ends: tuple[bytes, bytes]
) -> None:
    packet = ip_packet(*ends, protocol, data)
    ip = read_ip(packet)
    if isinstance(ip, IpPacket):
        assert ip.transport <= ip.end == len(packet)
        tcp = read_tcp(packet, ip)
        if isinstance(tcp, TcpHeader):
            answer = tcp_reset(ip, tcp)
            assert answer is None or isinstance(read_ip(answer), IpPacket)


# --- checksums and packets made anew ------------------------------------------------------------


@given(st.binary(min_size=40, max_size=40), st.binary(min_size=12, max_size=12))
def test_an_amended_checksum_is_the_one_made_anew(data: bytes, ends: bytes) -> None:
    """As if the whole had been summed again (RFC 1624 section 3, equation 3)."""
    changed = data[:8] + ends + data[20:]
    found = ~fold((~checksum(data) & 0xFFFF) + delta(data[8:20], ends)) & 0xFFFF
    expected = checksum(changed)
    assert found == expected or {found, expected} == {0, 0xFFFF}


@BOTH
def test_a_segment_nobody_knows_is_reset(source: bytes, destination: bytes) -> None:
    def reset(flags: int, payload: bytes = b"") -> TcpHeader | None:
        packet = ip_packet(source, destination, TCP, segment(flags) + payload)
        ip = header(packet)
        tcp = read_tcp(packet, ip)
        assert isinstance(tcp, TcpHeader)
        answer = tcp_reset(ip, tcp)
        if answer is None:
            return None
        back = header(answer)
        assert (back.source, back.destination) == (destination, source)
        assert transport_checksum(destination, source, TCP, answer[back.transport :]) == 0
        found = read_tcp(answer, back)
        assert isinstance(found, TcpHeader)
        return found

    assert reset(ACK, b"data") == TcpHeader(443, 1000, 9, 0, 20, RST)
    assert reset(SYN) == TcpHeader(443, 1000, 0, 8, 20, RST | ACK)
    assert reset(FIN, b"12") == TcpHeader(443, 1000, 0, 10, 20, RST | ACK)
    assert reset(RST) is None
