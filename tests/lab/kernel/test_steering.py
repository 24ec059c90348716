"""The kernel gives each packet to the queue that the steering program names."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Interface, IPv6Interface, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.inbound.tun_nat import NUMBERS, numbers_of
from gateway.kernel import tun_keeper
from gateway.kernel.tun import FRAME_BYTES, TunSettings
from gateway.kernel.tun_keeper import TunKeeper
from gateway.wire.icmp_error import IcmpError
from gateway.wire.icmp_packet import error_packet
from gateway.wire.ip import SYN, TCP, ip_packet, udp_packet

from .namespace import Namespace

SETTINGS = TunSettings(
    "gateway0", 1500, IPv4Interface("172.29.88.1/30"), IPv6Interface("fd00:88::1/126")
)
CLIENTS = {4: "192.168.20.2", 6: "fd00:20::2"}
#: A router between.
NARROW = {4: "192.168.20.99", 6: "fd00:20::99"}
REMOTE = {4: ip_address("198.51.100.9").packed, 6: ip_address("2001:db8:9::9").packed}


def segment(source: int, destination: int) -> bytes:
    return struct.pack("!HHIIBBHHH", source, destination, 7, 0, 5 << 4, SYN, 512, 0, 0)


def taken(keeper: TunKeeper, packets: Iterable[bytes]) -> Counter[int]:
    """How many of the packets each queue has."""
    found: Counter[int] = Counter()
    drained(keeper)
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sock:
        for packet in packets:
            sock.sendto(packet, (SETTINGS.name, 0x86DD if packet[0] >> 4 == 6 else 0x0800))
            found += drained(keeper)
    return found


def drained(keeper: TunKeeper) -> Counter[int]:
    found: Counter[int] = Counter()
    for number, fd in enumerate(keeper.queues):
        try:
            while os.read(fd, FRAME_BYTES):
                found[number] += 1
        except BlockingIOError:
            continue
    return found


def narrow(family: int, packet: bytes) -> bytes:
    """What a router says of a packet that is too big."""
    error = error_packet(packet, IcmpError.TOO_BIG, info=1280, source=NARROW[family])
    assert error is not None
    return error


def in_two(source: bytes, destination: bytes, port: int) -> list[bytes]:
    """TCP in two fragments; in the second one the ports are data."""
    body = segment(port, 443) + bytes(4) + port.to_bytes(2, "big") * 8
    if len(source) == 16:
        heads = (struct.pack("!BBHI", TCP, 0, mark, port) for mark in (1, 24))
        pieces = zip(heads, (body[:24], body[24:]), strict=True)
        return [ip_packet(source, destination, 44, head + piece) for head, piece in pieces]
    first, second = (ip_packet(source, destination, TCP, p) for p in (body[:24], body[24:]))
    return [first[:6] + b"\x20\0" + first[8:], second[:6] + b"\0\3" + second[8:]]


def check(queues: int) -> None:
    keeper = TunKeeper()
    assert keeper.keep(SETTINGS, queues)
    try:
        assert len(keeper.queues) == queues
        for family, own in ((4, SETTINGS.ipv4.ip), (6, SETTINGS.ipv6.ip)):
            client, remote = ip_address(CLIENTS[family]), REMOTE[family]
            # Ports that a client takes in turn; a datagram's client is one, whoever it talks to.
            ports = range(38000, 38400, 2)
            spread = taken(
                keeper, (ip_packet(client.packed, remote, TCP, segment(p, 443)) for p in ports)
            )
            assert set(spread) == set(range(queues))
            assert min(spread.values()) > len(ports) / queues / 3
            one = taken(
                keeper, (udp_packet(client.packed, p, remote, p, b"") for p in range(1000, 1050))
            )
            assert list(one.values()) == [50]
            # What is in fragments, of whatever, as datagrams are.
            parts = (part for port in ports for part in in_two(client.packed, remote, port))
            assert taken(keeper, parts) == Counter({next(iter(one)): 2 * len(ports)})
            # An error about what was sent to a client comes to the flow that it is about.
            for port in ports[:20]:
                question = ip_packet(client.packed, remote, TCP, segment(port, 443))
                answer = ip_packet(remote, client.packed, TCP, segment(443, port))
                assert taken(keeper, [narrow(family, answer)]) == taken(keeper, [question])
            others = [(client + n).packed for n in range(100)]
            questions = [udp_packet(c, 9, remote, 9, b"") for c in others]
            assert len(taken(keeper, questions)) == queues
            for other, question in zip(others[:20], questions, strict=False):
                answer = udp_packet(remote, 9, other, 9, bytes(100))
                assert taken(keeper, [narrow(family, answer)]) == taken(keeper, [question])
            # And answers come to the queue that has the number.
            for queue in range(queues):
                numbers = numbers_of(queue, queues)
                chosen = (numbers[0], numbers[1], numbers[-1])
                answers = (
                    ip_packet(own.packed, (own + 1).packed, TCP, segment(40000, n)) for n in chosen
                )
                assert taken(keeper, answers) == {queue: 3}
    finally:
        keeper.close()


@pytest.mark.parametrize("queues", [2, 3, 7])
def test_packets_are_spread_and_answers_find_their_flow(ns: Namespace, queues: int) -> None:
    ns.call(check, queues)


FIRST = st.sampled_from([0x00, 0x40, 0x45, 0x4F, 0x60, 0x6F, 0xFF])


def whatever_comes() -> None:
    """What is too short for its ends, or of no version that there is, is read as far as it goes."""
    keeper = TunKeeper()
    assert keeper.keep(SETTINGS, 3)

    @settings(max_examples=80, deadline=None, database=None)
    @given(FIRST, st.binary(max_size=80))
    def each(first: int, rest: bytes) -> None:
        packet = bytes([first]) + rest
        once, again = taken(keeper, [packet]), taken(keeper, [packet])
        assert once.total() == 1
        assert once == again
        if len(packet) < 20:
            assert once == {0: 1}

    try:
        each()
    finally:
        keeper.close()


def test_any_packet_has_its_queue(ns: Namespace) -> None:
    ns.call(whatever_comes)


@pytest.mark.parametrize("queues", [1, 2, 3, 64])
def test_each_number_is_one_queue_s(queues: int) -> None:
    shares = [set(numbers_of(queue, queues)) for queue in range(queues)]
    assert set.union(*shares) == set(NUMBERS)
    assert sum(map(len, shares)) == len(NUMBERS)


def test_where_the_kernel_cannot_be_told_one_queue_has_all(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where unprivileged processes, or none at all, may load programs."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no programs here")

    def alone() -> None:
        keeper = TunKeeper()
        assert keeper.keep(SETTINGS, 3)
        try:
            clients = ((ip_address(CLIENTS[4]) + n).packed for n in range(50))
            packets = (udp_packet(client, 9, REMOTE[4], 9, b"") for client in clients)
            assert taken(keeper, packets) == {0: 50}
            assert len(keeper.queues) == 1
        finally:
            keeper.close()

    monkeypatch.setattr(tun_keeper, "steer", refuse)
    ns.call(alone)
