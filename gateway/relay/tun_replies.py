"""Replies as packets of the far end's, written into the TUN: any far end may speak so.

Neither a socket nor a lease is behind them. Datagrams of one size go as one super-packet, which
the kernel cuts where it leaves (virtio 1.2 section 5.1.6.2: ``VIRTIO_NET_HDR_GSO_UDP_L4``).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final, Protocol

from gateway.flow import Endpoint
from gateway.kernel.datagrams import Batch
from gateway.kernel.sockaddr import Address
from gateway.wire.fragments import split
from gateway.wire.ip import (
    GSO_NONE,
    GSO_UDP_L4,
    NEEDS_CSUM,
    NO_OFFLOAD,
    UDP,
    V4_HEADER,
    V6_HEADER,
    Buffer,
    Vnet,
    checksum,
    fold,
    udp_packet,
    words,
)
from gateway.wire.path_mtu import PathMtus

#: What one super-packet may hold: UDP_MAX_SEGMENTS of <linux/udp.h> before 6.9, and bytes.
_MOST: Final = 64
_MOST_BYTES: Final = 65_000
_HOP_LIMIT: Final = 64
_UDP_HEADER: Final = 8

_V4: Final = struct.Struct("!BBHHHBBH4s4sHHHH")
_V6: Final = struct.Struct("!IHBB16s16sHHHH")
_V4_CHECKED: Final = struct.Struct("!BBHHHBB4s4s")


#: A client's address, packed, and port.
_Ends = tuple[bytes, int]


class Frames(Protocol):
    """What writes into the device."""

    def gather(self, parts: Sequence[Buffer]) -> bool:
        """Write one frame out of parts; False: the kernel did not take it, which is counted."""


class TunReplies:
    """Makes replies for far ends. ``segments``: the kernel cuts super-packets of UDP.

    ``paths``: what reaches clients whole.
    """

    def __init__(self, frames: Frames, paths: PathMtus, *, segments: bool) -> None:
        self.frames = frames
        self.paths = paths
        self.segments = segments
        self._identification = 0

    def lease(self, remote: Endpoint) -> TunReply:
        """What speaks as ``remote``."""
        return TunReply(self, remote)

    def release(self, reply: TunReply) -> None:
        """Nothing is held."""

    def identify(self, count: int) -> int:
        """A number for a packet that may be fragmented; each of ``count`` has the next one."""
        first = self._identification
        self._identification = (first + count) & 0xFFFF_FFFF
        return first


class TunReply:
    """Speaks to clients as one far end."""

    __slots__ = ("_head", "_port", "_replies", "_source", "_v6")

    def __init__(self, replies: TunReplies, remote: Endpoint) -> None:
        self._replies = replies
        self._source = ip_address(remote.host).packed
        self._port = remote.port
        self._v6 = len(self._source) == 16
        self._head = (V6_HEADER if self._v6 else V4_HEADER) + _UDP_HEADER

    def forward(self, batch: Batch, first: int, last: int, skip: int, client: Address) -> int:
        """Give the client slots ``first`` up to ``last``, without their first ``skip`` bytes.

        The bytes that it was given.
        """
        sent = total = size = 0
        to = _ends(client.raw)
        at_once = self._at_once(to)
        run: list[memoryview] = []
        most = _MOST if self._replies.segments else 1
        for slot in range(first, last):
            for datagram in batch.datagrams(slot):
                data = datagram[skip:]
                length = len(data)
                if run and (
                    length > size
                    or not length
                    or len(run[-1]) < size
                    or size > at_once
                    or len(run) == most
                    or total + length > _MOST_BYTES
                ):
                    sent += self._write(run, total, to, at_once)
                    run, total = [], 0
                if not run:
                    size = length
                run.append(data)
                total += length
        return sent + self._write(run, total, to, at_once)

    def send(self, batch: Batch, data: memoryview, client: Address) -> bool:
        """Give the client one datagram; False: it was dropped, which is counted."""
        del batch
        to = _ends(client.raw)
        return bool(self._write([data], len(data), to, self._at_once(to))) or not data

    def _at_once(self, to: _Ends) -> int:
        """The largest datagram that goes in one piece, and so in a super-packet."""
        return self._replies.paths.of(to[0]) - self._head

    def _write(self, run: list[memoryview], total: int, to: _Ends, at_once: int) -> int:
        if not run:
            return 0
        destination, port = to
        frames = self._replies.frames
        if len(run) == 1 and total > at_once and self._v6:
            # Nobody on the way may cut it.
            whole = udp_packet(self._source, self._port, destination, port, bytes(run[0]))
            number = self._replies.identify(1)
            pieces = split(whole, at_once + self._head, number)
            return total if all(frames.gather((NO_OFFLOAD, p)) for p in pieces) else 0
        headers = self._headers(destination, port, len(run), len(run[0]), total)
        return total if frames.gather((headers, *run)) else 0

    def _headers(self, destination: bytes, port: int, count: int, size: int, total: int) -> bytes:
        """For so many datagrams of ``size``; the sum of the pseudo header is the checksum yet."""
        length = _UDP_HEADER + total
        source = self._source
        check = fold(words(source + destination) + UDP + length)
        many = count > 1
        vnet = Vnet(
            NEEDS_CSUM,
            GSO_UDP_L4 if many else GSO_NONE,
            self._head if many else 0,
            size if many else 0,
            self._head - _UDP_HEADER,
            6,
        ).pack()
        udp = (self._port, port, length, check)
        if self._v6:
            return vnet + _V6.pack(6 << 28, length, UDP, _HOP_LIMIT, source, destination, *udp)
        number = self._replies.identify(count) & 0xFFFF
        start = (0x45, 0, V4_HEADER + length, number, 0, _HOP_LIMIT, UDP)
        head = checksum(_V4_CHECKED.pack(*start, source, destination))
        return vnet + _V4.pack(*start, head, source, destination, *udp)


def _ends(raw: bytes) -> _Ends:
    """Address and port of a ``sockaddr_in`` or ``sockaddr_in6``."""
    port = int.from_bytes(raw[2:4], "big")
    return (raw[4:8] if len(raw) == 16 else raw[8:24]), port
