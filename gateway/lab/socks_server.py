"""The lab's own SOCKS5 server: RFC 1928 CONNECT, without or with user and password (RFC 1929).

It is written apart from ``gateway.wire``, so that a mistake there does not cancel itself out.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import IntEnum
from ipaddress import ip_address

from gateway.lab.topology import Upstream

CHUNK = 1 << 18
VERSION = 5
NO_AUTHENTICATION, USER_PASSWORD, NO_ACCEPTABLE_METHOD = 0x00, 0x02, 0xFF
IPV4, NAME, IPV6 = 1, 3, 4

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
#: Told of each event: what happened, and its details.
Record = Callable[..., None]


class Reply(IntEnum):
    """RFC 1928 section 6."""

    SUCCEEDED = 0
    FAILURE = 1
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    REFUSED = 5
    COMMAND_NOT_SUPPORTED = 7


_REPLIES = {
    errno.ECONNREFUSED: Reply.REFUSED,
    errno.ENETUNREACH: Reply.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: Reply.HOST_UNREACHABLE,
    errno.ETIMEDOUT: Reply.HOST_UNREACHABLE,
}


class RefusedError(Exception):
    """The client cannot be served; it has been told so."""


class SocksServer:
    """One server; it connects on from the address it listens on, in both families.

    Every accept, every request and every failure is told to ``record``. ``names`` are those
    that it can resolve.
    """

    def __init__(
        self, upstream: Upstream, record: Record, names: Mapping[str, str] | None = None
    ) -> None:
        self._upstream = upstream
        self._record = record
        self._names = names or {}

    async def start(self) -> asyncio.Server:
        """Listen on all its addresses."""
        return await asyncio.start_server(
            self._connection, tuple(self._upstream.addresses), self._upstream.port, backlog=1024
        )

    async def _connection(self, reader: Reader, writer: Writer) -> None:
        peer = writer.get_extra_info("peername")[0]
        self._record("accept", peer=peer)
        try:
            await self._authenticate(reader, writer)
            host, port = await self._request(reader, writer)
            self._record("connect", peer=peer, host=host, port=port)
            onward_reader, onward = await self._connect(host, port, writer)
            try:
                # A reset of one side is passed on to the other, which ends its direction too.
                await asyncio.gather(
                    _pump(reader, onward), _pump(onward_reader, writer), return_exceptions=True
                )
            finally:
                await _close(onward)
        except (RefusedError, ConnectionError, asyncio.IncompleteReadError) as error:
            self._record("end", peer=peer, reason=repr(error))
        finally:
            await _close(writer)

    async def _authenticate(self, reader: Reader, writer: Writer) -> None:
        """Method selection (RFC 1928 section 3), and RFC 1929 where the server wants it."""
        version, count = await reader.readexactly(2)
        methods = await reader.readexactly(count)
        wanted = NO_AUTHENTICATION if self._upstream.username is None else USER_PASSWORD
        if version != VERSION or wanted not in methods:
            writer.write(bytes([VERSION, NO_ACCEPTABLE_METHOD]))
            raise RefusedError(f"version {version}, methods {methods.hex()}")
        writer.write(bytes([VERSION, wanted]))
        if wanted == NO_AUTHENTICATION:
            return
        _, length = await reader.readexactly(2)
        username = (await reader.readexactly(length)).decode()
        (length,) = await reader.readexactly(1)
        password = (await reader.readexactly(length)).decode()
        right = (username, password) == (self._upstream.username, self._upstream.password)
        writer.write(bytes([1, 0 if right else 1]))
        if not right:
            raise RefusedError(f"wrong password for {username}")

    async def _request(self, reader: Reader, writer: Writer) -> tuple[str, int]:
        """The address or name, and the port, that the client asks for (section 4)."""
        _, command, _, kind = await reader.readexactly(4)
        if kind == NAME:
            (length,) = await reader.readexactly(1)
            host = (await reader.readexactly(length)).decode()
        else:
            host = str(ip_address(await reader.readexactly(4 if kind == IPV4 else 16)))
        (port,) = struct.unpack("!H", await reader.readexactly(2))
        if command != 1:
            writer.write(_reply(Reply.COMMAND_NOT_SUPPORTED))
            raise RefusedError(f"command {command}")
        return host, port

    async def _connect(self, host: str, port: int, writer: Writer) -> tuple[Reader, Writer]:
        """Connect on, and tell the client how it went (section 6)."""
        try:
            version, address = await _resolve(self._names.get(host, host), port)
            source = next(a for a in self._upstream.addresses if ip_address(a).version == version)
            reader, onward = await asyncio.open_connection(
                address, port, local_addr=(source, 0), limit=CHUNK
            )
        except OSError as error:
            writer.write(_reply(_REPLIES.get(error.errno or 0, Reply.FAILURE)))
            raise RefusedError(f"{host}:{port}: {error}") from error
        writer.write(_reply(Reply.SUCCEEDED))
        return reader, onward


async def _resolve(host: str, port: int) -> tuple[int, str]:
    """IP version and address of a host."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    address = found[0][4][0]
    return ip_address(address).version, str(address)


def _reply(code: Reply) -> bytes:
    """A reply with an empty bound address, as clients of CONNECT do not use it."""
    return bytes([VERSION, code, 0, IPV4]) + bytes(6)


async def _pump(reader: Reader, writer: Writer) -> None:
    """Copy one direction, and pass on its end."""
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()
        raise


async def _close(writer: Writer) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
