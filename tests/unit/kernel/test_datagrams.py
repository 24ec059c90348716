"""Batches of datagrams over real sockets: what comes in, and what goes on."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow import Endpoint
from gateway.kernel.datagrams import SLOTS, SOL_UDP, UDP_GRO, UDP_SEGMENT, Batch, split_ends
from gateway.kernel.sockaddr import Address, control_messages, endpoint_of, sockaddr
from gateway.kernel.udp_sockets import ends_of, open_udp_listener, read_ends, tell_dscp

LOOPBACK = {4: "127.0.0.1", 6: "::1"}


class Path:
    """A sender, a socket that a batch is filled from, and a receiver to send it on to."""

    def __init__(self, family: int) -> None:
        kind = socket.AF_INET6 if family == 6 else socket.AF_INET
        self.socks = [socket.socket(kind, socket.SOCK_DGRAM) for _ in range(4)]
        self.sender, self.inlet, self.outlet, self.receiver = self.socks
        self.inlet.bind((LOOPBACK[family], 0))
        self.inlet.setsockopt(SOL_UDP, UDP_GRO, 1)
        self.receiver.bind((LOOPBACK[family], 0))
        self.receiver.settimeout(20)
        self.sender.connect(self.inlet.getsockname())
        self.to = Address(sockaddr(Endpoint(*self.receiver.getsockname()[:2])))

    def received(self, count: int) -> list[bytes]:
        return [self.receiver.recv(70_000) for _ in range(count)]


@pytest.fixture(params=[4, 6])
def path(request: pytest.FixtureRequest) -> Iterator[Path]:
    path = Path(request.param)
    yield path
    for sock in path.socks:
        sock.close()


@pytest.fixture(scope="module")
def batch() -> Batch:
    return Batch()


def fill(path: Path, batch: Batch, datagrams: list[bytes]) -> int:
    for datagram in datagrams:
        path.sender.send(datagram)
    return batch.receive(path.inlet.fileno())


def test_datagrams_go_on_as_they_came(path: Path, batch: Batch) -> None:
    sizes = [0, 1, 1200, 1472, 9000, 65_507 if path.sender.family == socket.AF_INET else 65_000]
    sent = [bytes([index]) * size for index, size in enumerate(sizes)]
    count = fill(path, batch, sent)
    assert count == len(sent)
    assert batch.forward(path.outlet, 0, count, to=path.to) == sum(sizes)
    assert path.received(count) == sent


def test_headers_come_and_go(path: Path, batch: Batch) -> None:
    sent = [b"head" + bytes([index]) * 100 for index in range(10)]
    count = fill(path, batch, sent)
    batch.forward(path.outlet, 0, count, skip=4, to=path.to)
    assert path.received(count) == [datagram[4:] for datagram in sent]
    path.outlet.connect(path.receiver.getsockname())
    assert batch.forward(path.outlet, 2, 3, prefix=b"one") == 104
    assert batch.forward(path.outlet, 0, count, prefix=b"in front") == 1040
    assert path.received(1 + count) == [b"one" + sent[2], *(b"in front" + each for each in sent)]


def test_no_more_is_taken_than_there_is_room_for(path: Path, batch: Batch) -> None:
    for index in range(SLOTS + 3):
        path.sender.send(bytes([index]))
    assert batch.receive(path.inlet.fileno()) == SLOTS
    assert batch.receive(path.inlet.fileno()) == 3
    assert [bytes(batch.data(slot)) for slot in range(3)] == [b"@", b"A", b"B"]
    assert batch.receive(path.inlet.fileno()) == 0


def test_a_train_stays_one(path: Path, batch: Batch) -> None:
    """What was sent at once is received at once, and sent on at once."""
    path.sender.setsockopt(SOL_UDP, UDP_SEGMENT, 100)
    pieces = [bytes([index]) * 100 for index in range(9)] + [b"the end"]
    assert fill(path, batch, [b"".join(pieces)]) == 1
    assert batch.segment(0) == 100
    assert [bytes(piece) for piece in batch.datagrams(0)] == pieces
    assert batch.forward(path.outlet, 0, 1, to=path.to) == 907
    assert path.received(10) == pieces
    assert batch.forward(path.outlet, 0, 1, prefix=b"head", to=path.to) == 907
    assert path.received(10) == [b"head" + piece for piece in pieces]
    assert batch.forward(path.outlet, 0, 1, skip=7, to=path.to) == 837
    assert path.received(10) == [piece[7:] for piece in pieces]


def test_a_train_whose_cars_are_too_large_for_the_way_goes_one_by_one(
    path: Path, batch: Batch
) -> None:
    """What the kernel refuses as a train: a header that leaves no room on the link."""
    path.sender.setsockopt(SOL_UDP, UDP_SEGMENT, 30_000)
    pieces = [b"a" * 30_000, b"b" * 30_000]
    assert fill(path, batch, [b"".join(pieces)]) == 1
    prefix = b"-" * 320
    path.outlet.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    path.receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    assert batch.forward(path.outlet, 0, 1, prefix=prefix, to=path.to) == 60_000
    assert path.received(2) == [prefix + piece for piece in pieces]


def test_trains_and_singles_keep_their_order(path: Path, batch: Batch) -> None:
    for index in range(6):
        path.sender.setsockopt(SOL_UDP, UDP_SEGMENT, 2 if index % 2 else 0)
        path.sender.send(b"%d1%d2" % (index, index))
    count = batch.receive(path.inlet.fileno())
    expected = [bytes(piece) for slot in range(count) for piece in batch.datagrams(slot)]
    assert b"".join(expected) == b"010211122122313241425152"
    batch.forward(path.outlet, 0, count, to=path.to)
    assert path.received(len(expected)) == expected


def test_alike_looks_at_every_datagram(path: Path, batch: Batch) -> None:
    path.sender.setsockopt(SOL_UDP, UDP_SEGMENT, 4)
    fill(path, batch, [b"abc1abc2abc3"])
    assert batch.alike(0, b"abc")
    fill(path, batch, [b"abc1xbc2abc3"])
    assert not batch.alike(0, b"abc")
    path.sender.setsockopt(SOL_UDP, UDP_SEGMENT, 0)
    fill(path, batch, [b"ab"])
    assert batch.alike(0, b"ab")
    assert not batch.alike(0, b"abc")


def test_what_cannot_be_sent_is_dropped_and_counted(path: Path) -> None:
    batch = Batch()
    count = fill(path, batch, [b"a", b"b", b"c"])
    address = path.receiver.getsockname()
    path.receiver.close()
    path.outlet.connect(address)
    # The first is sent, and its ICMP error is met by a later one, which is sent all the same.
    for _ in range(3):
        assert batch.forward(path.outlet, 0, count) == 3
    assert batch.dropped == 0
    path.outlet.shutdown(socket.SHUT_RDWR)
    assert batch.forward(path.outlet, 0, count) == 0
    assert batch.forward(path.outlet, 0, 1) == 0
    assert batch.dropped == 4


def test_the_source_is_told(path: Path, batch: Batch) -> None:
    fill(path, batch, [b"x"])
    size = 28 if path.sender.family == socket.AF_INET6 else 16
    assert endpoint_of(batch.name(0, size)) == Endpoint(*path.sender.getsockname()[:2])
    source, control = split_ends(batch.ends(0))
    assert endpoint_of(source) == Endpoint(*path.sender.getsockname()[:2])
    assert control == b""


addresses = st.one_of(
    st.ip_addresses(v=4),
    st.ip_addresses(v=6).filter(lambda address: address.ipv4_mapped is None),
).map(str)


@given(st.builds(Endpoint, addresses, st.integers(0, 65535)))
def test_socket_addresses_are_read_as_they_were_written(endpoint: Endpoint) -> None:
    raw = sockaddr(endpoint)
    assert endpoint_of(raw) == endpoint
    assert Address(raw).text[:2] == endpoint


@given(st.binary(max_size=200))
def test_control_messages_are_read_to_their_end(raw: bytes) -> None:
    assert sum(len(data) for _, _, data in control_messages(raw)) <= len(raw)


def test_what_no_socket_received_goes_on_too(path: Path, batch: Batch) -> None:
    """A train, a single one, and one that may go so many hops."""
    six = path.sender.family == socket.AF_INET6
    if six:
        path.receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
    else:
        path.receiver.setsockopt(socket.IPPROTO_IP, 12, 1)  # IP_RECVTTL
    for data, segment, hops in (
        (b"a" * 250, 100, 0), (b"b" * 250, 0, 0), (b"c" * 250, 250, 7), (b"", 0, 0),
    ):  # fmt: skip
        batch.put(0, data, segment, hops)
        assert batch.segment(0) == (100 if segment == 100 else 0)
        assert batch.forward(path.outlet, 0, 1, to=path.to) == len(data)
        sizes = [100, 100, 50] if segment == 100 else [len(data)]
        for size in sizes:
            got, control, _, _ = path.receiver.recvmsg(1000, 100)
            assert got == data[:size]
            assert (int.from_bytes(control[0][2][:4], sys.byteorder) == 7) == bool(hops)
    for slot, (data, segment) in enumerate(((b"1" * 9, 0), (b"2" * 9, 4), (b"3", 0))):
        batch.put(slot, data, segment)
    assert batch.forward(path.outlet, 0, 3, to=path.to) == 19
    assert path.received(5) == [b"1" * 9, b"2" * 4, b"2" * 4, b"2", b"3"]
    fill(path, batch, [b"again"])
    assert bytes(batch.data(0)) == b"again"


@given(
    st.sampled_from([4, 6]), st.data(), st.integers(0, 65535), st.integers(0, 65535)
)  # fmt: skip
def test_ends_that_were_made_are_read(
    family: int, data: st.DataObject, ours: int, theirs: int
) -> None:
    hosts = [data.draw(st.ip_addresses(v=family)) for _ in range(2)]
    dscp = data.draw(st.none() | st.integers(0, 63))
    ends = ends_of(hosts[0].packed, ours, hosts[1].packed, theirs, dscp)
    found = read_ends(ends)
    assert found is not None
    assert found.source == endpoint_of(sockaddr(Endpoint(str(hosts[0]), ours)))
    assert found.destination == endpoint_of(sockaddr(Endpoint(str(hosts[1]), theirs)))
    assert (found.interface, found.dscp) == (0, dscp)


EF, CONGESTED = 46, 3


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_listener_is_told_how_datagrams_came(host: str, told: bool) -> None:
    """Of a train as of a single one; as its class changes, so do the ends it is known by."""
    listener = open_udp_listener(host, 0)
    sender = socket.socket(listener.family, socket.SOCK_DGRAM)
    with closing(listener), sender:
        batch = Batch(tell_dscp(listener, told=told))
        sender.connect(listener.getsockname())
        seen = []
        for dscp, ecn in ((0, 0), (EF, 0), (EF, CONGESTED)):
            if listener.family == socket.AF_INET:
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, dscp << 2 | ecn)
            else:
                sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, dscp << 2 | ecn)
            sender.send(b"single")
            sender.sendmsg([b"train" * 3], [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", 5))])
            taken = batch.receive(listener.fileno())
            ends = {batch.ends(slot) for slot in range(taken)}
            assert [bytes(d) for s in range(taken) for d in batch.datagrams(s)] == [
                b"single", b"train", b"train", b"train",
            ]  # fmt: skip
            (one,) = ends
            found = read_ends(one)
            assert found is not None
            assert found.source == Endpoint(*sender.getsockname()[:2])
            assert found.destination == Endpoint(*listener.getsockname()[:2])
            assert found.dscp == (dscp if told else None)
            seen.append(one)
        assert len(set(seen)) == (3 if told else 1)
