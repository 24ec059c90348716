"""Fetch a list by HTTP: only if it changed, never more than allowed, and kept only if it reads."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urljoin, urlsplit

from gateway import exchange
from gateway.errors import GatewayError
from gateway.exchange import Connect

#: Told how many bytes have come, and how many will (0: unknown).
Received = Callable[[int, int], None]

_REDIRECTS: Final = 5
_PIECE: Final = 64 << 10
_REDIRECTED: Final = (301, 302, 303, 307, 308)
_MEGABYTE: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Copy:
    """What is known of the copy that is kept; times are Unix time in seconds, 0 for never."""

    etag: str = ""
    modified: str = ""
    fetched: float = 0.0
    checked: float = 0.0

    @classmethod
    def beside(cls, path: Path) -> Copy:
        """Of the list at ``path``; nothing is known where it is missing or its notes are bad."""
        with suppress(OSError, ValueError, TypeError, LookupError):
            if path.exists():
                noted = json.loads(_notes(path).read_text(encoding="utf-8"))
                etag, modified = str(noted["etag"]), str(noted["modified"])
                return cls(etag, modified, float(noted["fetched"]), float(noted["checked"]))
        return cls()

    def write(self, path: Path) -> None:
        """Keep it beside the list at ``path``."""
        _replace(_notes(path), json.dumps(asdict(self)).encode())


class Order(NamedTuple):
    """What to fetch, and within which bounds."""

    url: str
    target: Path
    max_bytes: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    location: str
    etag: str
    modified: str


async def fetch(
    order: Order, connect: Connect, verify: Callable[[Path], None], received: Received
) -> bool:
    """Bring the copy up to date; whether it changed.

    ``verify`` is called with the new list, in a thread, before it takes the old one's
    place. Raises ``GatewayError``, also what ``verify`` raises; the old copy is then as it was.
    """
    known = Copy.beside(order.target)
    conditions = {"If-None-Match": known.etag, "If-Modified-Since": known.modified}
    fresh = order.target.with_name(f"{order.target.name}.{os.getpid()}")
    now = time.time()
    try:
        order.target.parent.mkdir(parents=True, exist_ok=True)
        try:
            async with asyncio.timeout(order.timeout_s):
                answer = await _follow(order, conditions, connect, fresh, received)
        except TimeoutError:
            raise GatewayError(
                f"not there within {order.timeout_s:g} s", "set `timeout:` of the rule set higher"
            ) from None
        if answer.status == 304:
            replace(known, checked=now).write(order.target)
            return False
        await asyncio.to_thread(verify, fresh)
        fresh.replace(order.target)
        Copy(answer.etag, answer.modified, now, now).write(order.target)
    except OSError as error:
        raise GatewayError(f"cannot keep it: {error}", "make room, or set `state_dir`") from error
    finally:
        with suppress(OSError):
            fresh.unlink()
    return True


async def _follow(
    order: Order, conditions: dict[str, str], connect: Connect, fresh: Path, received: Received
) -> _Answer:
    url = order.url
    headers = {"Accept-Encoding": "identity"}
    headers |= {key: value for key, value in conditions.items() if value}
    take = partial(_take, order=order, fresh=fresh, received=received)
    for _ in range(_REDIRECTS + 1):
        host = "the server"
        try:
            parts = urlsplit(url)
            if parts.scheme not in exchange.PORTS or not parts.hostname:
                raise GatewayError(f"led to {parts.scheme or 'nothing'}, not to http or https")
            host = parts.hostname
            answer = await exchange.get(parts, connect, take, headers)
        except (HTTPException, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            # The URL itself may have a secret in it.
            raise GatewayError(f"the transfer from {host} failed: {reason}") from error
        if answer.status in (200, 304):
            return answer
        if not answer.location:
            raise GatewayError(f"{host} answered with status {answer.status}", "check the URL")
        url = urljoin(url, answer.location)
    raise GatewayError(f"led from one address to the next more than {_REDIRECTS} times")


def _take(response: HTTPResponse, order: Order, fresh: Path, received: Received) -> _Answer:
    if response.status == 200:
        _save(response, order, fresh, received)
    return _Answer(
        response.status,
        response.getheader("Location", "") if response.status in _REDIRECTED else "",
        response.getheader("ETag", ""),
        response.getheader("Last-Modified", ""),
    )


def _save(response: HTTPResponse, order: Order, fresh: Path, received: Received) -> None:
    encoding = response.getheader("Content-Encoding", "identity")
    if encoding != "identity":
        raise GatewayError(f"the answer is encoded ({encoding}), though none was asked for")
    whole = response.length or 0
    got = 0
    with fresh.open("wb") as file:
        while True:
            if max(got, whole) > order.max_bytes:
                raise GatewayError(
                    f"longer than {order.max_bytes / _MEGABYTE:g} MB",
                    "set `max_size:` of the rule set higher, if it should be that long",
                )
            piece = response.read(_PIECE)
            if not piece:
                break
            file.write(piece)
            got += len(piece)
            received(got, whole)
    if whole and got != whole:
        raise GatewayError(f"cut short: {got} of {whole} bytes came")


def _notes(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_bytes(data)
    fresh.replace(path)
