"""Small TCP servers with the manners that relays get wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from gateway.lab.http_server import pieces

BANNER = b"SSH-2.0-lab_1.0\r\n"
HALF_CLOSE_BYTES = 10_000_000
CHUNK = 1 << 16

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back whatever comes, and end when the client ends."""
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()


async def banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak first, as SSH, SMTP and FTP servers do; then repeat the client's first line."""
    writer.write(BANNER)
    writer.write(await reader.readline())
    await writer.drain()


async def half_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read until the client has shut its write side; only then send 10 MB."""
    while await reader.read(CHUNK):
        pass
    for piece in pieces(HALF_CLOSE_BYTES):
        writer.write(piece)
        await writer.drain()


async def start(handler: Handler, host: str, port: int) -> asyncio.Server:
    """Serve ``handler`` on each connection; the connection ends with it."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that resets is one of the manners under test, not an error of the server.
        with suppress(ConnectionError):
            await handler(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    return await asyncio.start_server(connection, host, port, backlog=1024)
