"""A cable with a delay: a process that joins two interfaces and forwards each frame later.

``python -m gateway.lab.delay MILLISECONDS`` joins the interfaces ``PORTS`` of its network
namespace, both ways, and writes ``ready`` once it does. It stands in for ``tc netem``, which
not every kernel has. Frames stay in order; what does not fit into the queue is lost, as in a
router. A frame is late by what the process needs to wake up and send, and never early.
"""

from __future__ import annotations

import argparse
import select
import socket
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

PORTS: Final = ("left", "right")
READY: Final = "ready"

#: Frames under way, both directions together: 50 ms of 5 Gbit/s.
QUEUE_BYTES: Final = 32 << 20
#: Between two wake-ups of this process; twice that is used, for the kernel's bookkeeping.
_RECEIVE_BUFFER_BYTES: Final = 8 << 20
#: The longest packet that segmentation offload makes is 64 KiB, without headers.
_FRAME_BYTES: Final = 1 << 17
#: Read before looking at the clock again.
_BATCH: Final = 64

# linux/if_packet.h, linux/if_ether.h and asm-generic/socket.h; not in Python's ``socket``.
_SOL_PACKET: Final = 263
_PACKET_VNET_HDR: Final = 15
_PACKET_IGNORE_OUTGOING: Final = 23
_SO_RCVBUFFORCE: Final = 33
_ETH_P_ALL: Final = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """On its way: to be sent on ``out`` at ``due_s`` of the monotonic clock."""

    due_s: float
    out: socket.socket
    content: bytes


class Cable:
    """Two ports. The delay is the same for all, so that one queue is in order of time."""

    def __init__(self, left: socket.socket, right: socket.socket, delay_s: float) -> None:
        """Of two sockets that keep frames apart and do not block."""
        self._opposite = {left: right, right: left}
        self._delay_s = delay_s
        self._queue: deque[Frame] = deque()
        self._queued_bytes = 0

    def step(self) -> None:
        """Wait for a frame to come or to be due, and see to it.

        Raises ``OSError`` when an interface has gone away.
        """
        # Unlike epoll's, this timeout is not rounded up to milliseconds.
        readable, _, _ = select.select(self._opposite, (), (), self._wait_s())
        for sock in readable:
            self._receive(sock)
        self._send_due()

    def _wait_s(self) -> float | None:
        return max(0.0, self._queue[0].due_s - time.monotonic()) if self._queue else None

    def _receive(self, sock: socket.socket) -> None:
        out = self._opposite[sock]
        with suppress(BlockingIOError):
            for _ in range(_BATCH):
                content = sock.recv(_FRAME_BYTES)
                if self._queued_bytes + len(content) <= QUEUE_BYTES:
                    self._queued_bytes += len(content)
                    self._queue.append(Frame(time.monotonic() + self._delay_s, out, content))

    def _send_due(self) -> None:
        now = time.monotonic()
        while self._queue and self._queue[0].due_s <= now:
            frame = self._queue.popleft()
            self._queued_bytes -= len(frame.content)
            # No room at the interface: the frame is lost, as it would be on any.
            with suppress(BlockingIOError):
                frame.out.send(frame.content)


def port(interface: str) -> socket.socket:
    """An interface's frames, each behind a ``virtio_net_hdr``. Raises ``OSError`` (packet(7)).

    With that header a packet longer than the MTU, which waits to be segmented, and one whose
    checksum waits to be computed are passed on as they are.
    """
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
    # No protocol until bind: nothing of other interfaces gets in.
    sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
    sock.bind((interface, _ETH_P_ALL))
    return sock


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="gateway.lab.delay", description=__doc__)
    parser.add_argument("delay_ms", metavar="MILLISECONDS", type=float)
    left, right = map(port, PORTS)
    cable = Cable(left, right, parser.parse_args().delay_ms / 1e3)
    print(READY, flush=True)
    while True:
        cable.step()


if __name__ == "__main__":
    main()
