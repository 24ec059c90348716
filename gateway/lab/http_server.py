"""The lab's HTTP server: known bytes down, digests of what came up, and who asked."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from functools import cache
from random import Random

from aiohttp import web

#: Downloads are this block again and again: its content is the same in every run.
BLOCK = Random(2022).randbytes(1 << 20)  # noqa: S311


@cache
def digest(size: int) -> str:
    """The SHA-256 of ``/bytes/SIZE``, in hex."""
    hashed = hashlib.sha256()
    for piece in pieces(size):
        hashed.update(piece)
    return hashed.hexdigest()


def pieces(size: int) -> list[memoryview]:
    """The content of ``/bytes/SIZE``; costs no memory beside the one block."""
    whole, rest = divmod(size, len(BLOCK))
    block = memoryview(BLOCK)
    return [block] * whole + ([block[:rest]] if rest else [])


async def _bytes(request: web.Request) -> web.StreamResponse:
    size = int(request.match_info["size"])
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    response.content_length = size
    await response.prepare(request)
    for piece in pieces(size):
        await response.write(piece)
    return response


async def _upload(request: web.Request) -> web.Response:
    hashed, size = hashlib.sha256(), 0
    async for piece in request.content.iter_any():
        hashed.update(piece)
        size += len(piece)
    return web.json_response({"sha256": hashed.hexdigest(), "size": size})


async def _whoami(request: web.Request) -> web.Response:
    """Both ends of the connection, as the server sees them."""
    transport = request.transport
    if transport is None:
        raise web.HTTPServiceUnavailable
    peer, local = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    return web.json_response(
        {"peer": peer[0], "peer_port": peer[1], "local": local[0], "local_port": local[1]}
    )


async def _slow(request: web.Request) -> web.StreamResponse:
    """One byte every ``interval`` seconds (default 0.1), ``count`` times (default 20)."""
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(int(request.query.get("count", "20"))):
        await response.write(b".")
        await asyncio.sleep(float(request.query.get("interval", "0.1")))
    return response


def application() -> web.Application:
    """The routes."""
    app = web.Application()
    app.router.add_get(r"/bytes/{size:\d{1,12}}", _bytes)
    app.router.add_route("*", "/upload", _upload)
    app.router.add_get("/whoami", _whoami)
    app.router.add_get("/slow", _slow)
    return app


async def start(host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
    """Serve until the loop ends."""
    runner = web.AppRunner(application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port, backlog=1024, ssl_context=tls).start()
