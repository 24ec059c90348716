"""One HTTP request over a connection of its own, which the caller opens by whatever way.

``http.client`` talks, in a thread, since it takes a socket as it is. Who does not want to wait
any more ends the connection under it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from contextlib import closing, suppress
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from typing import Final, TypeVar
from urllib.parse import SplitResult

from gateway.flow import Endpoint
from gateway.version import VERSION

T = TypeVar("T")

#: Opens a blocking connection to a name or an address. Raises ``GatewayError``.
Connect = Callable[[Endpoint], Awaitable[socket.socket]]
#: The schemes that are known, and their ports.
PORTS: Final = {"http": 80, "https": 443}


async def get(
    url: SplitResult,
    connect: Connect,
    take: Callable[[HTTPResponse], T],
    headers: Mapping[str, str],
    executor: Executor | None = None,
) -> T:
    """GET ``url``, and what ``take`` makes of the answer, in a thread (of ``executor``'s).

    ``url`` has a scheme of ``PORTS``, and a host. Raises ``ssl.SSLError`` where the certificate
    is not one that this machine trusts for that host, ``http.client.HTTPException``, ``OSError``
    and ``ValueError`` for whatever else goes wrong on the way; and what ``connect`` and ``take``
    raise.
    """
    sock = await connect(Endpoint(url.hostname or "", url.port or PORTS[url.scheme]))
    try:
        # The thread's own may be taken over (``SSLContext.wrap_socket``), and not answer here.
        ours = sock.dup()
    except OSError:
        sock.close()
        raise
    waiting = [sock]
    try:
        asking = partial(_ask, waiting, url, take, headers)
        return await asyncio.get_running_loop().run_in_executor(executor, asking)
    except asyncio.CancelledError:
        with suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)  # the thread wakes up, and ends
        raise
    finally:
        ours.close()
        with suppress(IndexError):
            waiting.pop().close()  # no thread has come to it


def _ask(
    waiting: list[socket.socket],
    url: SplitResult,
    take: Callable[[HTTPResponse], T],
    headers: Mapping[str, str],
) -> T:
    """Blocks; closes the socket, which it takes out of ``waiting``."""
    host = url.hostname or ""
    with waiting.pop() as sock:
        if url.scheme == "https":
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        with closing(HTTPConnection(host)) as connection:
            connection.sock = sock
            always = {
                "Host": url.netloc.rpartition("@")[2],
                "User-Agent": f"gateway/{VERSION}",
                "Connection": "close",
            }
            target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
            connection.request("GET", target, headers={**always, **headers})
            with connection.getresponse() as response:
                return take(response)
