"""Clients that talk as people do: some bytes there and back, a pause, and now and then a new flow.

What is sent is long enough for a relay to find it worth a pipe, both ways, and what comes back
is compared with it, byte by byte.
"""

from __future__ import annotations

import errno
import heapq
import os
import random
import select
import socket
import time
from contextlib import suppress
from typing import Final

from gateway.lab.load.counters import ESTABLISHED, EXCHANGES, FAILED, RECEIVED

BLOCK: Final = random.Random(1).randbytes(128 << 10)  # noqa: S311 - a pattern
PAUSE_S: Final = 1.0
#: A flow ends after so many blocks, and another begins.
BLOCKS: Final = 10

_CHUNK: Final = 64 << 10
_SENDING: Final = select.EPOLLIN | select.EPOLLOUT


class Flow:
    """One connection, and how far its block and its life have got."""

    __slots__ = ("blocks", "received", "sent", "sock")

    def __init__(self, address: tuple[str, int]) -> None:
        """Raises ``OSError`` where it cannot even begin to connect."""
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.blocks = self.sent = self.received = 0
        code = self.sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            self.sock.close()
            raise OSError(code, os.strerror(code))

    def send(self) -> bool:
        """As much as goes; True: the block is sent."""
        with suppress(BlockingIOError):
            self.sent += self.sock.send(memoryview(BLOCK)[self.sent :])
        return self.sent == len(BLOCK)

    def receive(self) -> int:
        """How many bytes came. Raises ``OSError`` where they are not those that were sent."""
        data = self.sock.recv(_CHUNK)
        if not data or data != BLOCK[self.received : self.received + len(data)]:
            raise ConnectionError("a flow ended early, or other bytes came back")
        self.received += len(data)
        return len(data)


class Talk:
    """All flows in one epoll loop; ``count`` as of ``counters.CLIENT``."""

    def __init__(self, count: memoryview, address: tuple[str, int]) -> None:
        self._count = count
        self._address = address
        self._epoll = select.epoll()
        self._flows: dict[int, Flow] = {}
        #: When who goes on; None begins a new flow. The number keeps flows from being compared.
        self._due: list[tuple[float, int, Flow | None]] = []
        self._numbers = 0

    def run(self, flows: int) -> None:
        """Keep so many flows going, until killed."""
        for number in range(flows):
            self._later(None, PAUSE_S * number / flows)
        while True:
            self._go_on()
            wait_s = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            for fd, events in self._epoll.poll(wait_s):
                self._serve(self._flows[fd], events)

    def _later(self, flow: Flow | None, seconds: float) -> None:
        self._numbers += 1
        heapq.heappush(self._due, (time.monotonic() + seconds, self._numbers, flow))

    def _go_on(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            flow = heapq.heappop(self._due)[2]
            if flow is None:
                flow = Flow(self._address)
                self._flows[flow.sock.fileno()] = flow
                self._epoll.register(flow.sock, _SENDING)
            elif flow.sock.fileno() >= 0:  # it may have broken while it paused
                flow.sent = flow.received = 0
                self._epoll.modify(flow.sock, _SENDING)

    def _serve(self, flow: Flow, events: int) -> None:
        try:
            if events & select.EPOLLOUT and flow.send():
                self._epoll.modify(flow.sock, select.EPOLLIN)
            if events & ~select.EPOLLOUT:
                self._count[RECEIVED] += flow.receive()
        except OSError:
            self._count[FAILED] += 1
            self._end(flow)
            return
        if flow.received == len(BLOCK):
            self._block_done(flow)

    def _block_done(self, flow: Flow) -> None:
        flow.received = 0
        flow.blocks += 1
        self._count[EXCHANGES] += 1
        if flow.blocks == 1:
            self._count[ESTABLISHED] += 1
        if flow.blocks == BLOCKS:
            self._end(flow)
        else:
            self._later(flow, PAUSE_S)

    def _end(self, flow: Flow) -> None:
        del self._flows[flow.sock.fileno()]
        flow.sock.close()
        self._later(None, PAUSE_S)
