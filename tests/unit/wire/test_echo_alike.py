"""What echo requests of one ping have in common says all that matters of their headers."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.echo_alike import common_parts
from gateway.wire.icmp_error import checksum
from gateway.wire.icmp_packet import Echo, read_echo
from gateway.wire.ip import ICMP, ICMPV6, IpPacket, ip_packet, read_ip, transport_checksum

ENDS = st.sampled_from(
    [
        ("192.0.2.1", "198.51.100.1"),
        ("192.0.2.1", "198.51.100.2"),
        ("192.0.2.2", "198.51.100.1"),
        ("2001:db8::1", "2001:db8:1::1"),
        ("2001:db8::2", "2001:db8:1::1"),
    ]
)


def request(ends: tuple[str, str], identifier: int, sequence: int, ttl: int, data: bytes) -> bytes:
    source, destination = (ip_address(end).packed for end in ends)
    v6 = len(source) == 16
    message = bytes([128 if v6 else 8, 0, 0, 0])
    message += identifier.to_bytes(2, "big") + sequence.to_bytes(2, "big") + data
    check = transport_checksum(source, destination, ICMPV6, message) if v6 else checksum(message)
    message = message[:2] + check.to_bytes(2, "big") + message[4:]
    return ip_packet(source, destination, ICMPV6 if v6 else ICMP, message, ttl=ttl)


REQUESTS = st.builds(
    request,
    ENDS,
    st.integers(1, 2),
    st.integers(0, 65_535),
    st.integers(62, 63),
    st.sampled_from([b"", b"12345678", b"abcdefgh"]),
)


def parsed(packet: bytes) -> Echo:
    ip = read_ip(packet)
    assert isinstance(ip, IpPacket)
    echo = read_echo(ip, packet)
    assert isinstance(echo, Echo)
    return echo


@given(REQUESTS, REQUESTS, st.binary(max_size=12))
def test_alike_are_those_that_differ_in_number_and_data_alone(
    one: bytes, other: bytes, before: bytes
) -> None:
    first, second = parsed(one), parsed(other)
    same = first._replace(sequence=0, data=b"") == second._replace(sequence=0, data=b"")
    same = same and len(first.data) == len(second.data)
    found = common_parts(one)
    assert found is not None
    assert (found == common_parts(other)) is same
    start, parts = found
    assert one[start:][6:8] == first.sequence.to_bytes(2, "big")
    assert common_parts(before + one, len(before)) == (start + len(before), parts)


@given(REQUESTS, st.integers(0, 31), st.integers(1, 255))
def test_no_other_byte_of_a_header_may_differ(packet: bytes, place: int, change: int) -> None:
    """But those that follow from number and data, and IPv4's identification."""
    changed = bytearray(packet)
    place %= len(packet)
    changed[place] ^= change
    free = {4, 5, 10, 11, 22, 23, 26, 27, 28, 29, 30, 31} if packet[0] >> 4 == 4 else set()
    if place not in free:
        assert common_parts(changed) != common_parts(packet)


@given(st.binary(max_size=80), st.integers(0, 80))
def test_anything_may_come(data: bytes, at: int) -> None:
    found = common_parts(data, at)
    assert found is None or at < found[0] <= len(data) - 8


@given(REQUESTS, st.integers(0, 79))
def test_what_is_cut_off_is_none(packet: bytes, size: int) -> None:
    least = 48 if packet[0] >> 4 == 6 else 28
    assert (common_parts(packet[:size]) is None) is (size < least)
