"""Fragments put together in any order, and packets cut."""

from __future__ import annotations

import random
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.fragments import MOST, MOST_BYTES, PATIENCE_S, Reassembler, split
from gateway.wire.icmp_error import checksum
from gateway.wire.ip import UDP, IpPacket, ip_packet, read_ip

V4 = tuple(ip_address(a).packed for a in ("192.168.10.2", "203.0.113.5"))
V6 = tuple(ip_address(a).packed for a in ("2001:db8:10::2", "2001:db8:113::5"))


def cut(packet: bytes, step: int, identification: int = 7) -> list[bytes]:
    """As a sender, or a router, does it; ``step`` is a multiple of 8."""
    if packet[0] >> 4 == 6:
        return split(packet, step + 48, identification) if len(packet) > step + 48 else [packet]
    pieces = []
    body = packet[20:]
    for at in range(0, len(body), step):
        part = body[at : at + step]
        more = 0x2000 if at + step < len(body) else 0
        head = packet[:2] + struct.pack("!HHH", 20 + len(part), identification, more | at // 8)
        head += packet[8:10] + b"\0\0" + packet[12:20]
        pieces.append(head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + part)
    return pieces


def feed(reassembler: Reassembler, piece: bytes, now: float = 0.0) -> bytes | None:
    ip = read_ip(piece)
    assert isinstance(ip, IpPacket)
    return reassembler.feed(ip, piece, now)


@given(
    st.sampled_from([V4, V6]), st.binary(min_size=1, max_size=6000), st.integers(1, 180),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_a_packet_comes_back_whole_in_any_order(
    ends: tuple[bytes, bytes], body: bytes, step: int, chance: random.Random
) -> None:
    packet = ip_packet(*ends, UDP, body)
    pieces = cut(packet, 8 * step) if len(body) > 8 * step else [packet]
    chance.shuffle(pieces)
    pieces.insert(chance.randrange(len(pieces)), pieces[0])  # one comes twice
    reassembler = Reassembler()
    found = [whole for piece in pieces if (whole := feed(reassembler, piece))]
    assert found
    ip = read_ip(found[0])
    assert isinstance(ip, IpPacket)
    assert (ip.source, ip.destination, ip.protocol, ip.fragment) == (*ends, UDP, None)
    assert found[0][ip.transport : ip.end] == body


@pytest.mark.parametrize("ends", [V4, V6])
def test_parts_that_overlap_end_their_packet(ends: tuple[bytes, bytes]) -> None:
    first, second, *_ = cut(ip_packet(*ends, UDP, bytes(4000)), 1600)
    other = cut(ip_packet(*ends, UDP, bytes(4000)), 1280)
    reassembler = Reassembler()
    for piece in (first, second, other[1], other[3], other[2]):
        assert feed(reassembler, piece) is None
    assert reassembler.given_up == 1


@pytest.mark.parametrize("ends", [V4, V6])
def test_halves_alone_take_bounded_room_and_time(ends: tuple[bytes, bytes]) -> None:
    reassembler = Reassembler()
    packet = ip_packet(*ends, UDP, bytes(60_000))
    sent = 3 * MOST
    for number in range(sent):
        assert feed(reassembler, cut(packet, 30_400, number)[0], float(number) / sent) is None
    assert 0 < len(reassembler) <= min(MOST, MOST_BYTES // 30_000)
    assert reassembler.given_up == sent - len(reassembler)
    reassembler.expire(PATIENCE_S + 1)
    assert (len(reassembler), reassembler.given_up) == (0, sent)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8190), st.booleans(),
                          st.binary(max_size=64)), max_size=40))  # fmt: skip
def test_nothing_that_comes_breaks_it(parts: list[tuple[int, int, bool, bytes]]) -> None:
    reassembler = Reassembler()
    for number, offset, more, body in parts:
        head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(body), number,
                           (0x2000 if more else 0) | offset & 0x1FFF, 64, UDP)  # fmt: skip
        head += b"\0\0" + V4[0] + V4[1]
        packet = head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body
        ip = read_ip(packet)
        if isinstance(ip, IpPacket) and (whole := reassembler.feed(ip, packet, 0.0)):
            assert isinstance(read_ip(whole), IpPacket)


@given(st.binary(min_size=1, max_size=6000), st.integers(1280, 1500))
def test_what_is_cut_fits(body: bytes, mtu: int) -> None:
    packet = ip_packet(*V6, UDP, body)
    pieces = split(packet, mtu, 9)
    assert all(len(piece) <= mtu for piece in pieces)
    assert (len(pieces) == 1) == (len(packet) <= mtu)
    old = ip_packet(*V4, UDP, body)
    assert split(old, mtu, 9) == [old]
