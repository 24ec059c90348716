"""Socket addresses and control messages as the kernel writes them (ip(7), ipv6(7), cmsg(3))."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final

from gateway.flow import Endpoint

#: struct cmsghdr, of which the data follows.
CMSG: Final = struct.Struct("Nii")
ORDER: Final = sys.byteorder


class Address:
    """A socket address in the two forms that sends need; ``raw`` is the kernel's own."""

    __slots__ = ("_buffer", "pointer", "raw", "size", "text")

    def __init__(self, raw: bytes) -> None:
        """``raw``: a ``sockaddr_in`` or ``sockaddr_in6``."""
        self.raw = raw
        self.text: tuple[str, int] | tuple[str, int, int, int] = (*endpoint_of(raw),)
        if len(raw) > 16 and any(raw[24:28]):
            # A link-local one: without its scope it is of no link.
            self.text = (*self.text, 0, struct.unpack_from("=I", raw, 24)[0])
        self._buffer = ctypes.create_string_buffer(raw, len(raw))
        self.pointer = ctypes.addressof(self._buffer)
        self.size = len(raw)

    def without_port(self) -> Address:
        """The same host, as raw sockets want it (raw(7))."""
        return Address(self.raw[:2] + bytes(2) + self.raw[4:])


def sockaddr(endpoint: Endpoint) -> bytes:
    """An endpoint with an address as the kernel writes it (ip(7), ipv6(7))."""
    host, port = endpoint
    if ":" in host:
        head = struct.pack("=H", socket.AF_INET6) + port.to_bytes(2, "big") + bytes(4)
        return head + socket.inet_pton(socket.AF_INET6, host) + bytes(4)
    head = struct.pack("=H", socket.AF_INET) + port.to_bytes(2, "big")
    return head + socket.inet_aton(host) + bytes(8)


def endpoint_of(raw: bytes) -> Endpoint:
    """The endpoint that a ``sockaddr_in`` or ``sockaddr_in6`` names, without its scope."""
    port = int.from_bytes(raw[2:4], "big")
    if int.from_bytes(raw[:2], ORDER) == socket.AF_INET6:
        return Endpoint(socket.inet_ntop(socket.AF_INET6, raw[8:24]), port)
    return Endpoint(socket.inet_ntop(socket.AF_INET, raw[4:8]), port)


def control_messages(raw: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Level, type and data of each control message (cmsg(3)); stops at one that is cut off."""
    at, header = 0, CMSG.size
    align = ctypes.sizeof(ctypes.c_size_t) - 1
    while at + header <= len(raw):
        length, level, kind = CMSG.unpack_from(raw, at)
        if length < header or at + length > len(raw):
            return
        yield level, kind, raw[at + header : at + length]
        at += (length + align) & ~align
