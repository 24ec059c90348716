"""Both ends of a benchmark of datagrams: a SOCKS5 relay that is itself the far end, and senders.

``python -m gateway.lab.load.datagrams COUNTERS serve HOST PORT`` grants UDP associations
(RFC 1928, without authentication), counts what comes for port 9, and gives back what comes
for port 7; once it listens, it writes ``ready``. ``COUNTERS KIND TARGET RATE`` is a client,
until it is told to stop: ``plain`` sends datagrams, ``train`` many in one call (UDP_SEGMENT),
both to port 9 from one socket; ``many`` sends small ones from a thousand sockets in turn, to
port 7, all of them RATE a second. ``steady`` is ``plain``, but has had an answer before it
begins. ``echo`` and ``open`` ask port 7 and wait, one after the other, from one socket and
from a new one each time; on SIGTERM they write the seconds that each answer took, as JSON.
"""

from __future__ import annotations

import argparse
import json
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from types import FrameType
from typing import Final

from gateway.lab.load import server
from gateway.lab.load.counters import Counters

#: Datagrams that have arrived at the far end, and in answer at the client; and that were sent.
ENDS: Final = ("arrived", "answered", "sent")
ARRIVED, ANSWERED, SENT = range(3)
READY: Final = "ready"
#: Of senders: methods of ``Sender``.
KINDS: Final = ("plain", "steady", "train", "many", "echo", "open")

#: As QUIC sends them, mostly; and as games and calls do.
LARGE: Final = bytes(1200)
SMALL: Final = bytes(64)
FLOWS: Final = 1000
#: Datagrams of a train: what QUIC stacks send in one call, at most.
CARS: Final = 20
TIMEOUT_S: Final = 2.0
#: Senders look at the clock so often (seconds).
TICK_S: Final = 0.001

_UDP_SEGMENT: Final = 103
_QUEUE: Final = 16 << 20
_SO_RCVBUFFORCE: Final = 33
_GRANTED: Final = b"\x05\x00\x00\x01"


class Server:
    """Grants associations, and is what their datagrams are for."""

    def __init__(self, count: memoryview, host: str, port: int) -> None:
        self._count = count
        self._host = host
        self._listener = socket.create_server((host, port), backlog=4096)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        #: By descriptor: control connections, each with its relay once that is granted, and relays.
        self._controls: dict[int, tuple[socket.socket, socket.socket | None]] = {}
        self._relays: dict[int, socket.socket] = {}
        self._buffer = bytearray(65536)

    def run(self) -> None:
        """Until killed."""
        print(READY, flush=True)
        while True:
            for fd, _ in self._epoll.poll():
                relay = self._relays.get(fd)
                if relay is not None:
                    self._carry(relay)
                elif fd == self._listener.fileno():
                    self._accept()
                else:
                    self._hear(*self._controls[fd])

    def _accept(self) -> None:
        control, _ = self._listener.accept()
        self._controls[control.fileno()] = (control, None)
        self._epoll.register(control, select.EPOLLIN)

    def _hear(self, control: socket.socket, relay: socket.socket | None) -> None:
        said = _said(control)
        if not said:
            self._end(control, relay)
        elif relay is None and said[:1] == b"\x05" and said[1:2] != b"\x03":
            control.sendall(b"\x05\x00")
        elif relay is None:
            self._grant(control)

    def _grant(self, control: socket.socket) -> None:
        relay = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        relay.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _QUEUE)
        relay.bind((self._host, 0))
        self._relays[relay.fileno()] = relay
        self._epoll.register(relay, select.EPOLLIN)
        self._controls[control.fileno()] = (control, relay)
        where = socket.inet_aton(self._host) + struct.pack("!H", relay.getsockname()[1])
        control.sendall(_GRANTED + where)

    def _end(self, control: socket.socket, relay: socket.socket | None) -> None:
        del self._controls[control.fileno()]
        control.close()
        if relay is not None:
            del self._relays[relay.fileno()]
            relay.close()

    def _carry(self, relay: socket.socket) -> None:
        buffer, view = self._buffer, memoryview(self._buffer)
        for _ in range(64):
            try:
                size, client = relay.recvfrom_into(buffer)
            except BlockingIOError:
                return
            self._count[ARRIVED] += 1
            # The port stands at the end of an IPv4 header.
            if buffer[9] == server.ECHO:
                relay.sendto(view[:size], client)


def _said(control: socket.socket) -> bytes:
    """Nothing where it has ended."""
    try:
        return control.recv(512)
    except ConnectionResetError:
        return b""


class Sender:
    """A client in the LAN."""

    def __init__(self, count: memoryview, target: str, rate: int) -> None:
        self._count = count
        self._target = target
        self._rate = rate
        self.times_s: list[float] = []

    def plain(self) -> None:
        """One flow, one datagram a call."""
        self._send_all(self._socket(server.DISCARD))

    def steady(self) -> None:
        """One flow that is open, one datagram a call: not one may be lost on the way to it."""
        sock = self._socket(server.ECHO)
        while not self.times_s:
            self._ask(sock)
        sock.connect((self._target, server.DISCARD))
        self._send_all(sock)

    def train(self) -> None:
        """One flow, many datagrams a call."""
        sock = self._socket(server.DISCARD)
        sock.setsockopt(17, _UDP_SEGMENT, len(LARGE))
        train, waiting = LARGE * CARS, 0
        for due in self._paced():
            waiting += due
            while waiting >= CARS:
                sock.send(train)
                waiting -= CARS
                self._count[SENT] += CARS

    def many(self) -> None:
        """A thousand flows in turn, and their answers."""
        socks = [self._socket(server.ECHO) for _ in range(FLOWS)]
        epoll = select.epoll()
        by_number = {sock.fileno(): sock for sock in socks}
        for number in by_number:
            epoll.register(number, select.EPOLLIN)
        # Each says something else: the same from everywhere looks like a loop.
        turn = cycle([(sock, n.to_bytes(2, "big") + SMALL[2:]) for n, sock in enumerate(socks)])
        for due in self._paced():
            for _ in range(due):
                sock, data = next(turn)
                sock.send(data)
            self._count[SENT] += due
            for number, _ in epoll.poll(0):
                by_number[number].recv(100)
                self._count[ANSWERED] += 1

    def echo(self) -> None:
        """One flow, one datagram under way."""
        sock = self._socket(server.ECHO)
        while True:
            self._ask(sock)

    def open(self) -> None:
        """A new flow for each datagram."""
        while True:
            with self._socket(server.ECHO) as sock:
                self._ask(sock)
            time.sleep(0.005)

    def _send_all(self, sock: socket.socket) -> None:
        for due in self._paced():
            for _ in range(due):
                sock.send(LARGE)
                self._count[SENT] += 1

    def _ask(self, sock: socket.socket) -> None:
        began = time.perf_counter()
        sock.send(SMALL)
        self._count[SENT] += 1
        try:
            sock.recv(100)
        except TimeoutError:
            return
        self.times_s.append(time.perf_counter() - began)
        self._count[ANSWERED] += 1

    def _socket(self, port: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(TIMEOUT_S)
        sock.connect((self._target, port))
        return sock

    def _paced(self) -> Iterator[int]:
        """How many are due, again and again."""
        began, sent = time.perf_counter(), 0
        while True:
            time.sleep(TICK_S)
            due = int((time.perf_counter() - began) * self._rate) - sent
            sent += due
            yield due


def _stop(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise SystemExit


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="gateway.lab.load.datagrams", description=__doc__)
    parser.add_argument("counters", type=Path)
    parser.add_argument("kind", choices=["serve", *KINDS])
    parser.add_argument("host")
    parser.add_argument("number", type=int)
    arguments = parser.parse_args()
    server.raise_descriptor_limit()
    signal.signal(signal.SIGTERM, _stop)
    count = Counters(arguments.counters, ENDS).values
    if arguments.kind == "serve":
        Server(count, arguments.host, arguments.number).run()
    sender = Sender(count, arguments.host, arguments.number)
    try:
        getattr(sender, arguments.kind)()
    finally:
        print(json.dumps(sender.times_s), flush=True)


if __name__ == "__main__":
    main()
