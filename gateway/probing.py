"""One probe: an HTTP request through a member of a group, by the very way that flows go."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException, HTTPResponse
from typing import Final
from urllib.parse import urlsplit

from gateway import exchange
from gateway.errors import GatewayError
from gateway.exchange import Connect

#: Probes that may be under way. Each has a thread, and those of the loop are left alone: a server
#: that does not answer must not keep the kernel's state waiting.
AT_ONCE: Final = 8
_asking: Final = ThreadPoolExecutor(AT_ONCE, "probe")


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
            status = await exchange.get(parts, connect, _status, {}, _asking)
    except TimeoutError:
        raise GatewayError(f"no answer within {timeout_s:g} s") from None
    except (HTTPException, OSError, ValueError, LookupError) as error:
        raise GatewayError(f"{host}: {str(error) or type(error).__name__}") from error
    if not 200 <= status < 300:
        raise GatewayError(f"{host} answered with status {status}")
    return time.monotonic() - started


def _status(response: HTTPResponse) -> int:
    return response.status
