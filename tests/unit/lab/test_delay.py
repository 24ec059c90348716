from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from gateway.lab import delay
from gateway.lab.delay import Cable

DELAY_S = 0.02


class Joined:
    """A cable between two sockets that keep messages apart, as an interface does frames."""

    def __init__(self) -> None:
        (self.left, a), (self.right, b) = (
            socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)
        )
        self.ports = (a, b)
        for sock in (self.left, self.right, a, b):
            sock.setblocking(False)
        self.cable = Cable(a, b, DELAY_S)

    def receive(self, end: socket.socket, count: int) -> list[bytes]:
        """The next frames that come out at one end."""
        frames: list[bytes] = []
        while len(frames) < count:
            try:
                frames.append(end.recv(1 << 16))
            except BlockingIOError:
                self.cable.step()
        return frames


@pytest.fixture
def joined() -> Iterator[Joined]:
    joined = Joined()
    yield joined
    for sock in (joined.left, joined.right, *joined.ports):
        sock.close()


def test_frames_come_late_in_order_and_at_the_other_end(joined: Joined) -> None:
    began = time.monotonic()
    sent = [b"%d" % number for number in range(100)]
    for frame in sent:
        joined.left.send(frame)
    joined.right.send(b"back")
    assert joined.receive(joined.right, 100) == sent
    assert time.monotonic() - began >= DELAY_S
    assert joined.receive(joined.left, 1) == [b"back"]


def test_frames_are_of_their_own_time(joined: Joined) -> None:
    joined.left.send(b"first")
    assert joined.receive(joined.right, 1) == [b"first"]
    began = time.monotonic()
    joined.left.send(b"second")
    assert joined.receive(joined.right, 1) == [b"second"]
    assert time.monotonic() - began >= DELAY_S


def test_what_does_not_fit_is_lost_and_room_comes_back(
    joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delay, "QUEUE_BYTES", 10)
    for frame in (b"123456", b"too long", b"abcd"):
        joined.left.send(frame)
    assert joined.receive(joined.right, 2) == [b"123456", b"abcd"]
    joined.left.send(b"0123456789")
    assert joined.receive(joined.right, 1) == [b"0123456789"]
