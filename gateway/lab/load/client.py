"""The clients of a benchmark: one process that keeps its connections busy until it is told to stop.

``python -m gateway.lab.load.client COUNTERS TARGET KIND COUNT`` opens COUNT connections to the
services of ``gateway.lab.load.server`` on TARGET. KIND is ``download``, ``upload``, ``exchange``
(a new connection for each answer; COUNT are always under way), ``active`` (see
``gateway.lab.load.talk``) or ``idle``, which proves its connections at the start and on each
SIGUSR1. On SIGTERM it writes the seconds from connect(2) to the first byte of each exchange,
in order, as JSON, and ends.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import select
import signal
import socket
import time
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from types import FrameType
from typing import Final

from gateway.lab.load import server
from gateway.lab.load.counters import (
    CLIENT,
    ESTABLISHED,
    EXCHANGES,
    FAILED,
    PROVED,
    RECEIVED,
    Counters,
)
from gateway.lab.load.talk import Talk

TIMEOUT_S: Final = 10.0
#: Idle connections are opened this many at a time: no listener's queue overflows.
BATCH: Final = 50

_EXCHANGE_EVENTS: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class Client:
    """What each kind of run has: a target, and numbers to count up."""

    def __init__(self, counters: Counters, target: str, connections: int) -> None:
        self._count = counters.values
        self._target = target
        self._connections = connections
        self.first_bytes_s: list[float] = []

    def download(self) -> None:
        """Receive as fast as it comes."""
        buffer = bytearray(server.CHUNK)
        epoll, socks = select.epoll(), {}
        for sock in self._open(server.SOURCE, self._connections):
            sock.send(b"!")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, server.LOW_WATER)
            epoll.register(sock, select.EPOLLIN)
            socks[sock.fileno()] = sock
        while True:
            for fd, _ in epoll.poll():
                received = socks[fd].recv_into(buffer, server.CHUNK, socket.MSG_TRUNC)
                if not received:
                    raise ConnectionError("a download ended")
                self._count[RECEIVED] += received

    def upload(self) -> None:
        """Send as fast as it goes."""
        source = server.source_file()
        epoll = select.epoll()
        socks = self._open(server.DISCARD, self._connections)
        for sock in socks:
            epoll.register(sock, select.EPOLLOUT)
        while True:
            for fd, _ in epoll.poll():
                os.sendfile(fd, source, 0, server.CHUNK)

    def idle(self) -> None:
        """Open connections, prove each by one byte there and back, and leave them alone."""
        signal.signal(signal.SIGUSR1, lambda _number, _frame: None)
        kept = []
        for at in range(0, self._connections, BATCH):
            batch = self._open(server.ECHO, min(BATCH, self._connections - at))
            self._prove(batch)
            if self._count[FAILED]:
                raise ConnectionError("an idle connection was closed")
            self._count[ESTABLISHED] += len(batch)
            kept.append(batch)
        while True:
            signal.pause()
            for batch in kept:
                self._prove(batch)

    def _prove(self, socks: list[socket.socket]) -> None:
        for sock in socks:
            sock.settimeout(TIMEOUT_S)
            with suppress(OSError):  # which the answer tells
                sock.send(b"?")
        for sock in socks:
            try:
                answer = sock.recv(1)
            except OSError:
                answer = b""
            self._count[PROVED if answer == b"?" else FAILED] += 1

    def active(self) -> None:
        """Talk, pause, and begin anew now and then."""
        Talk(self._count, (self._target, server.ECHO)).run(self._connections)

    def exchange(self) -> None:
        """Connect, ask, read the answer to its end, and begin again: a closed loop."""
        Exchanges(self._count, self._target, self.first_bytes_s).run(self._connections)

    def _open(self, port: int, number: int) -> list[socket.socket]:
        socks = [socket.create_connection((self._target, port), TIMEOUT_S) for _ in range(number)]
        for sock in socks:
            sock.setblocking(False)
        return socks


class Exchanges:
    """Many short connections, each in one of two states: to ask, or to be answered."""

    def __init__(self, count: memoryview, target: str, first_bytes_s: list[float]) -> None:
        self._count = count
        self._family = socket.AF_INET6 if ":" in target else socket.AF_INET
        self._addresses = cycle([(target, port) for port in server.ANSWER])
        self._first_bytes_s = first_bytes_s
        self._epoll = select.epoll()
        #: Socket, and when it began to connect; 0 once it has its first byte.
        self._open: dict[int, tuple[socket.socket, float]] = {}

    def run(self, number: int) -> None:
        """Keep ``number`` connections under way."""
        for _ in range(number):
            self._begin()
        while True:
            for fd, events in self._epoll.poll():
                sock, began = self._open[fd]
                try:
                    ended = self._advance(sock, began, events)
                except OSError:
                    ended = True
                    self._count[FAILED] += 1
                if ended:
                    del self._open[fd]
                    sock.close()
                    self._begin()

    def _begin(self) -> None:
        sock = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        fd = sock.fileno()
        self._open[fd] = (sock, time.perf_counter())
        code = sock.connect_ex(next(self._addresses))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        self._epoll.register(fd, _EXCHANGE_EVENTS)

    def _advance(self, sock: socket.socket, began: float, events: int) -> bool:
        """Serve one event; True: the exchange has ended. Raises ``OSError`` where it failed."""
        if not events & select.EPOLLIN:
            sock.send(server.REQUEST)
            return False
        received = sock.recv(4096)
        if received and began:
            self._first_bytes_s.append(time.perf_counter() - began)
            self._open[sock.fileno()] = (sock, 0.0)
        elif began:
            raise ConnectionResetError
        if received and not events & select.EPOLLRDHUP:
            return False
        self._count[EXCHANGES] += 1
        return True


def _stop(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise SystemExit


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="gateway.lab.load.client", description=__doc__)
    parser.add_argument("counters", type=Path)
    parser.add_argument("target")
    parser.add_argument("kind", choices=["download", "upload", "exchange", "idle", "active"])
    parser.add_argument("connections", type=int)
    arguments = parser.parse_args()
    server.raise_descriptor_limit()
    signal.signal(signal.SIGTERM, _stop)
    client = Client(Counters(arguments.counters, CLIENT), arguments.target, arguments.connections)
    try:
        getattr(client, arguments.kind)()
    finally:
        print(json.dumps(client.first_bytes_s), flush=True)


if __name__ == "__main__":
    main()
