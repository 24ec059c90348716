"""Replies as packets: what is joined, what is cut, and that a client may read them."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow import Endpoint
from gateway.kernel.datagrams import Batch
from gateway.kernel.sockaddr import Address, sockaddr
from gateway.relay.tun_replies import TunReplies
from gateway.wire.fragments import Reassembler
from gateway.wire.ip import (
    GSO_NONE,
    GSO_UDP_L4,
    NEEDS_CSUM,
    UDP,
    VNET_BYTES,
    Buffer,
    IpPacket,
    fold,
    read_ip,
    read_udp,
    read_vnet,
    transport_checksum,
    words,
)
from gateway.wire.path_mtu import PathMtus

ENDS = {
    4: (Endpoint("203.0.113.5", 53), Endpoint("192.168.10.2", 4242)),
    6: (Endpoint("2001:db8:113::5", 53), Endpoint("2001:db8:10::2", 4242)),
}
MTU = 1500


class Written:
    """Takes frames, and gives the datagrams in them back."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self._whole = Reassembler()

    def gather(self, parts: Sequence[Buffer]) -> bool:
        self.frames.append(b"".join(parts))
        return True

    def datagrams(self, family: int) -> list[bytes]:
        """Those that the client gets, after a look at all the headers."""
        return [data for frame in self.frames for data in self._of(frame, family)]

    def _of(self, frame: bytes, family: int) -> list[bytes]:
        far, client = ENDS[family]
        vnet, packet = read_vnet(frame), frame[VNET_BYTES:]
        ip = read_ip(packet)
        assert isinstance(ip, IpPacket)
        if ip.fragment is not None:
            assert len(packet) <= MTU
            whole = self._whole.feed(ip, packet, 0.0)
            if whole is None:
                return []
            packet, ip = whole, read_ip(whole)
            assert isinstance(ip, IpPacket)
        assert (ip.source, ip.destination) == tuple(
            ip_address(end.host).packed for end in (far, client)
        )
        udp = read_udp(packet, ip)
        assert udp[:2] == (far.port, client.port)
        assert udp.length == ip.end - ip.transport
        segment = packet[ip.transport : ip.end]
        if vnet.flags & NEEDS_CSUM:
            assert (vnet.csum_start, vnet.csum_offset) == (ip.transport, 6)
            # A sum of the pseudo header alone: the kernel goes on from there.
            assert udp.checksum == fold(words(ip.source + ip.destination) + UDP + udp.length)
        else:
            assert transport_checksum(ip.source, ip.destination, UDP, segment) == 0xFFFF
        data = segment[8:]
        if vnet.gso_type == GSO_NONE:
            return [data]
        assert (vnet.gso_type, vnet.header) == (GSO_UDP_L4, ip.transport + 8)
        return [data[at : at + vnet.gso_size] for at in range(0, len(data), vnet.gso_size)]


class Slots(Batch):
    """A batch whose slots hold what a test puts there."""

    def __init__(self, slots: Sequence[Sequence[bytes]]) -> None:
        super().__init__()
        self.slots = slots

    def datagrams(self, slot: int):
        return (memoryview(data) for data in self.slots[slot])


@given(
    st.sampled_from([4, 6]),
    st.lists(
        st.lists(
            st.sampled_from([0, 1, 100, 1400, 1452, 1472, 1473, 5000]).map(lambda n: bytes(3 + n)),
            min_size=1, max_size=90,
        ),
        max_size=5,
    ),
    st.booleans(),
)  # fmt: skip
def test_the_client_gets_what_came(family: int, slots: list[list[bytes]], segments: bool) -> None:
    far, client = ENDS[family]
    written = Written()
    reply = TunReplies(written, PathMtus(MTU), segments=segments).lease(far)
    sent = reply.forward(Slots(slots), 0, len(slots), 3, Address(sockaddr(client)))
    expected = [data[3:] for slot in slots for data in slot]
    assert written.datagrams(family) == expected
    assert sent == sum(map(len, expected))
    if not segments:
        assert len(written.frames) >= len(expected)


@pytest.mark.parametrize("family", [4, 6])
def test_a_train_is_one_frame(family: int) -> None:
    far, client = ENDS[family]
    written = Written()
    replies = TunReplies(written, PathMtus(MTU), segments=True)
    reply = replies.lease(far)
    slots = [[b"a" * 1200] * 30, [b"b" * 1200] * 10 + [b"c" * 7]]
    reply.forward(Slots(slots), 0, 2, 0, Address(sockaddr(client)))
    assert len(written.frames) == 1
    assert written.datagrams(family) == [*slots[0], *slots[1]]
    # Nothing may follow what is shorter.
    assert reply.send(Batch(), memoryview(b"later"), Address(sockaddr(client)))
    assert len(written.frames) == 2
    replies.release(reply)


def test_nothing_longer_than_its_path_takes_goes_to_a_client() -> None:
    far, client = ENDS[6]
    written, paths = Written(), PathMtus(MTU)
    reply = TunReplies(written, paths, segments=True).lease(far)
    long, short = [b"a" * 1400] * 3, [b"b" * 1200] * 3
    reply.forward(Slots([long]), 0, 1, 0, Address(sockaddr(client)))
    assert len(written.frames) == 1
    paths.tell(ip_address(client.host).packed, 1280, 0.0)
    reply.forward(Slots([long, short]), 0, 2, 0, Address(sockaddr(client)))
    assert len(written.frames) == 1 + 6 + 1  # halves, and what still goes at once
    assert all(len(frame) - VNET_BYTES <= 1280 for frame in written.frames[1:-1])
    assert written.datagrams(6) == long + long + short
    other = Endpoint("2001:db8:10::3", 4242)
    reply.forward(Slots([long]), 0, 1, 0, Address(sockaddr(other)))
    assert len(written.frames) == 9
