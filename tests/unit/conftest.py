"""A data plane on loopback: an event loop, a reactor, and real sockets at both ends."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gateway.flow import Endpoint
from gateway.kernel.reactor import FlowLoop
from gateway.kernel.sockets import endpoint

T = TypeVar("T")

DEADLINE_S = 20.0
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33


@pytest.fixture
def root() -> None:
    """Asks for root."""
    if os.geteuid() != 0:
        pytest.skip("SO_MARK and IP_TRANSPARENT need CAP_NET_ADMIN: run as root")


@pytest.fixture
def descriptors() -> Iterator[Callable[[int], None]]:
    """``descriptors(3)``: from now on, three more can be opened, and no fourth."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers: list[int] = []

    def leave(room: int) -> None:
        # The limit is on the number: all free numbers below the highest in use are taken first.
        highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
        while (fd := os.open(os.devnull, os.O_RDONLY)) < highest:
            fillers.append(fd)
        os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + room, hard))

    yield leave
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for fd in fillers:
        os.close(fd)


def _set_buffers(sock: socket.socket, size: int) -> None:
    """Fix both buffers, in bytes; 0 leaves them to the kernel's tuning."""
    if size:
        forced = os.geteuid() == 0  # beyond net.core.rmem_max (socket(7))
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE if forced else socket.SO_RCVBUF, size)
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE if forced else socket.SO_SNDBUF, size)


class Plane:
    """What a test of the data plane runs on; all that it opened it closes."""

    def __init__(self) -> None:
        self.loop = FlowLoop()
        self.reactor = self.loop.reactor
        self._opened: list[socket.socket] = []

    def run(self, scenario: Coroutine[Any, Any, T]) -> T:
        """Run a scenario on the loop, within the deadline."""
        return self.loop.run_until_complete(asyncio.wait_for(scenario, 2 * DEADLINE_S))

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the loop turn until the condition holds."""
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, "the condition never held"
            await asyncio.sleep(0.001)

    async def turns(self, count: int = 5) -> None:
        """Let the loop turn a few times: what is ready now is served."""
        for _ in range(count):
            await asyncio.sleep(0)

    def own(self, sock: socket.socket, buffer: int = 0) -> socket.socket:
        """Close this socket at the end. ``buffer``: SO_RCVBUF and SO_SNDBUF, in bytes."""
        sock.setblocking(False)
        _set_buffers(sock, buffer)
        self._opened.append(sock)
        return sock

    def server(self, host: str = "127.0.0.1", *, buffer: int = 0) -> tuple[socket.socket, Endpoint]:
        """A listening socket, and where; what it accepts has the same buffers."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = self.own(socket.socket(family, socket.SOCK_STREAM), buffer)
        sock.bind((host, 0))
        sock.listen(512)
        return sock, endpoint(sock.getsockname())

    def closed_port(self) -> Endpoint:
        """Where nobody listens; the port is held, so that nobody will."""
        sock = self.own(socket.socket())
        sock.bind(("127.0.0.1", 0))
        return endpoint(sock.getsockname())

    def dial(
        self, remote: Endpoint, *, source: Endpoint | None = None, buffer: int = 0
    ) -> socket.socket:
        """A connection that has begun."""
        family = socket.AF_INET6 if ":" in remote.host else socket.AF_INET
        sock = self.own(socket.socket(family, socket.SOCK_STREAM), buffer)
        if source is not None:
            sock.bind(source)
        sock.connect_ex(remote)
        return sock

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Both ends of a TCP connection over loopback."""
        server, where = self.server()
        near = self.dial(where)
        far = self.own(self.ready(server).accept()[0])
        server.close()
        return near, far

    @staticmethod
    def ready(sock: socket.socket) -> socket.socket:
        """The socket, once it has something to accept, to read or to tell.

        Loopback delivers at once, except where there is much else to be delivered.
        """
        polling = select.poll()
        polling.register(sock, select.POLLIN)
        assert polling.poll(DEADLINE_S * 1000), "nothing came"
        return sock

    @staticmethod
    def reset(sock: socket.socket) -> None:
        """Close with a RST (socket(7), ``SO_LINGER`` of 0)."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    async def accept(self, server: socket.socket) -> socket.socket:
        """The next connection."""
        sock, _ = await self.loop.sock_accept(server)
        return self.own(sock)

    async def read_to_end(self, sock: socket.socket) -> bytes:
        """All that comes until the peer's FIN. Raises ``ConnectionResetError`` on its RST."""
        parts = []
        while part := await self.loop.sock_recv(sock, 1 << 20):
            parts.append(part)
        return b"".join(parts)

    async def read(self, sock: socket.socket, count: int) -> bytes:
        """Exactly so many bytes."""
        parts = bytearray()
        while len(parts) < count:
            part = await self.loop.sock_recv(sock, count - len(parts))
            assert part, f"the peer ended after {len(parts)} of {count} bytes"
            parts += part
        return bytes(parts)

    def close(self) -> None:
        """Close everything, and let what was forgotten be found."""
        for sock in self._opened:
            sock.close()
        self.loop.close()
        gc.collect()


@pytest.fixture
def plane() -> Iterator[Plane]:
    """A fresh data plane."""
    made = Plane()
    yield made
    made.close()


@pytest.fixture(scope="session")
def initials() -> list[bytes]:
    """A QUIC client's first datagrams: its hello, for www.video.example, is too long for one."""
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.connection import QuicConnection

    settings = QuicConfiguration(
        server_name="www.video.example",
        alpn_protocols=[f"protocol-number-{number}" for number in range(150)],
    )
    connection = QuicConnection(configuration=settings)
    connection.connect(("192.0.2.1", 443), now=0.0)
    sent = [data for data, _ in connection.datagrams_to_send(now=0.0)]
    assert len(sent) >= 3
    return sent
