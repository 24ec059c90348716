"""One probe: an HTTP request through a member of a group, by the very way that flows go."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from typing import Final
from urllib.parse import urlsplit

from gateway.errors import GatewayError
from gateway.flow import Endpoint
from gateway.version import VERSION

#: Opens a blocking connection to a name or an address. Raises ``GatewayError``.
Connect = Callable[[Endpoint], Awaitable[socket.socket]]

#: Probes that may be under way. Each has a thread, and those of the loop are left alone: a server
#: that does not answer must not keep the kernel's state waiting.
AT_ONCE: Final = 8
_asking: Final = ThreadPoolExecutor(AT_ONCE, "probe")

_PORTS = {"http": 80, "https": 443}


async def probe(url: str, timeout_s: float, connect: Connect) -> float:
    """How long the answer took, the connection included (seconds).

    Call at most ``AT_ONCE`` at a time: more would wait for one another, and seem slow.

    Raises ``GatewayError`` where there is none in time, or its status is not 200 to 299.
    """
    host = "the server"
    started = time.monotonic()
    try:
        parts = urlsplit(url)
        host = parts.hostname or host
        async with asyncio.timeout(timeout_s):
            sock = await connect(Endpoint(host, parts.port or _PORTS[parts.scheme]))
            try:
                loop = asyncio.get_running_loop()
                status = await loop.run_in_executor(_asking, _ask, sock, url)
            except asyncio.CancelledError:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)  # the thread wakes up, and ends
                raise
    except TimeoutError:
        raise GatewayError(f"no answer within {timeout_s:g} s") from None
    except (HTTPException, OSError, ValueError, LookupError) as error:
        raise GatewayError(f"{host}: {str(error) or type(error).__name__}") from error
    if not 200 <= status < 300:
        raise GatewayError(f"{host} answered with status {status}")
    return time.monotonic() - started


def _ask(sock: socket.socket, url: str) -> int:
    """The status of the answer. Blocks; closes the socket."""
    parts = urlsplit(url)
    with sock:
        if parts.scheme == "https":
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=parts.hostname)
        with closing(HTTPConnection(parts.hostname or "")) as connection:
            connection.sock = sock
            headers = {
                "Host": parts.netloc.rpartition("@")[2],
                "User-Agent": f"gateway/{VERSION}",
                "Connection": "close",
            }
            target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
            connection.request("GET", target, headers=headers)
            with connection.getresponse() as response:
                return response.status
