"""One request: what is sent, and that nobody goes on asking when nobody waits."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway.exchange import get
from gateway.flow import Endpoint
from gateway.lab import certificate

DEADLINE_S = 20.0


class Server:
    """Answers each request with ``said``, or never; notes what was asked, and who has gone."""

    def __init__(self, said: bytes) -> None:
        self._said = said
        self.asked = b""
        self.heard = asyncio.Event()
        self.gone = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            self.asked = await reader.readuntil(b"\r\n\r\n")
            self.heard.set()
            writer.write(self._said)
            if not self._said:
                await reader.read()
        self.gone.set()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def against(
    said: bytes,
    tls: certificate.Certificate | None,
    work: Callable[..., Coroutine[None, None, None]],
) -> None:
    async def scenario() -> None:
        server = Server(said)
        context = tls.context() if tls else None
        async with await asyncio.start_server(server.serve, "127.0.0.1", ssl=context) as it:
            port = it.sockets[0].getsockname()[1]

            async def connect(_target: Endpoint) -> socket.socket:
                return await asyncio.to_thread(
                    socket.create_connection, ("127.0.0.1", port), 10 * DEADLINE_S
                )

            await work(server, connect)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("http://a.example", b"GET / HTTP/1.1", b"a.example"),
        ("http://a.example:81/x?y=1", b"GET /x?y=1 HTTP/1.1", b"a.example:81"),
        ("http://a.example?y=1#z", b"GET /?y=1 HTTP/1.1", b"a.example"),
        ("http://me:secret@a.example/", b"GET / HTTP/1.1", b"a.example"),
        ("http://[2001:db8::1]:81/", b"GET / HTTP/1.1", b"[2001:db8::1]:81"),
    ],
)
def test_what_is_asked(url: str, line: bytes, host: bytes) -> None:
    async def work(server: Server, connect) -> None:
        status = await get(urlsplit(url), connect, lambda a: a.status, {"If-None-Match": '"e"'})
        assert status == 204
        asked, *headers = server.asked.split(b"\r\n")
        assert asked == line
        assert b"Host: " + host in headers
        assert b'If-None-Match: "e"' in headers

    against(b"HTTP/1.1 204 No\r\n\r\n", None, work)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_who_stops_waiting_ends_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Also under TLS, which takes the socket over; a stop of the gateway would wait for it."""
    made = certificate.make(tmp_path, ["a.example"])
    monkeypatch.setenv("SSL_CERT_FILE", str(made.chain))

    async def work(server: Server, connect) -> None:
        url = urlsplit(f"{scheme}://a.example/")
        asking = asyncio.create_task(get(url, connect, lambda a: a.status, {}))
        async with asyncio.timeout(DEADLINE_S):
            await server.heard.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await server.gone.wait()

    against(b"", made if scheme == "https" else None, work)


def test_who_stops_waiting_for_a_thread_leaves_no_connection() -> None:
    busy, opened = threading.Event(), asyncio.Event()
    socks: list[socket.socket] = []

    async def work(_server: Server, connect) -> None:
        async def noted(target: Endpoint) -> socket.socket:
            socks.append(await connect(target))
            opened.set()
            return socks[0]

        with ThreadPoolExecutor(1) as executor:
            executor.submit(busy.wait, DEADLINE_S)
            url = urlsplit("http://a.example/")
            asking = asyncio.create_task(get(url, noted, lambda a: a.status, {}, executor))
            try:
                await opened.wait()
                await asyncio.sleep(0)
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
                assert socks[0].fileno() == -1
            finally:
                busy.set()

    against(b"", None, work)
