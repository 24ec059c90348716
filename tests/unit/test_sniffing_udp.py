"""Datagrams that wait until their client has shown a name: none is lost, none is out of order."""

from __future__ import annotations

import socket

import pytest

from gateway.flow import Endpoint, FlowFacts, Protocol
from gateway.kernel.datagrams import Batch
from gateway.sniff.sighting import Sighting
from gateway.sniffing_udp import KEPT_BYTES, UnheardFlow

FACTS = FlowFacts(Protocol.UDP, Endpoint("192.0.2.1", 4000), Endpoint("198.51.100.1", 443))
STUN = b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12)


class Onward:
    """Takes what is sent onward."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    def up(self, batch: Batch, first: int, last: int) -> None:
        self.got += [bytes(each) for slot in range(first, last) for each in batch.datagrams(slot)]


class Desk:
    """Decides as the dispatcher does."""

    def __init__(self, onward: Onward | None) -> None:
        self.onward = onward
        self.seen: list[Sighting] = []
        self.why: list[str] = []

    def heard(self, flow: UnheardFlow, seen: Sighting) -> None:
        self.seen.append(seen)
        flow.onward = self.onward
        if self.onward is not None:
            self.onward.got += flow.kept

    def dropped(self, why: str) -> None:
        self.why.append(why)


@pytest.fixture
def arrive():
    """Gives a flow these datagrams, as the kernel does: in one batch."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    batch = Batch()

    def arrive(flow: UnheardFlow, *datagrams: bytes) -> None:
        for datagram in datagrams:
            near.send(datagram)
        count = batch.receive(far.fileno())
        assert count == len(datagrams)
        flow.up(batch, 0, count)

    yield arrive
    near.close()
    far.close()


def test_one_datagram_is_enough(arrive):
    desk = Desk(Onward())
    arrive(UnheardFlow(desk, b"", FACTS), STUN, b"more")
    assert desk.seen == [Sighting("stun", complete=True)]
    assert desk.onward.got == [STUN, b"more"]


def test_a_hello_in_several(arrive, initials):
    desk = Desk(Onward())
    flow = UnheardFlow(desk, b"", FACTS)
    *some, last = initials
    for datagram in some:
        arrive(flow, datagram)
        assert not desk.seen
        assert flow.sighting().protocol == "quic"
    arrive(flow, last)
    assert desk.seen == [Sighting("quic", "www.video.example", complete=True)]
    assert desk.onward.got == initials


def test_a_hello_in_one_batch(arrive, initials):
    desk = Desk(Onward())
    arrive(UnheardFlow(desk, b"", FACTS), *initials)
    assert desk.onward.got == initials


def test_what_has_no_way_goes_nowhere(arrive):
    desk = Desk(None)
    arrive(UnheardFlow(desk, b"", FACTS), STUN)
    assert len(desk.seen) == 1


def test_what_is_kept_is_bounded(arrive, initials):
    desk = Desk(Onward())
    flow = UnheardFlow(desk, b"", FACTS)
    arrive(flow, initials[0])
    arrive(flow, bytes(KEPT_BYTES))
    arrive(flow, initials[1])
    assert (flow.kept, desk.why) == (initials[:2], ["not-ready"])
