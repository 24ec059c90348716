"""Fragments of IP packets put together, and packets cut into them (RFC 791, RFC 8200 section 4.5).

Sans-I/O and bounded: whoever sends halves of packets alone takes no more room than ``MOST``
packets and ``MOST_BYTES``, the oldest of which are given up for others.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from gateway.wire.icmp_error import checksum
from gateway.wire.ip import V6_HEADER, Buffer, IpPacket

#: Unfinished packets, and the bytes in them.
MOST: Final = 64
MOST_BYTES: Final = 1 << 20
#: How long the rest of a packet is waited for (seconds): RFC 1122 section 3.3.2 has 60 to 120 for
#: hosts; the LAN's fragments come through the kernel here, which gives them on together.
PATIENCE_S: Final = 15.0

_FRAGMENT_HEADER: Final = 44
_LARGEST: Final = 0xFFFF


class _Key(NamedTuple):
    source: bytes
    destination: bytes
    protocol: int
    identification: int


class _Parts:
    """What has come of a packet. ``head``: its headers, once the first part is there."""

    __slots__ = ("bytes", "head", "pieces", "since", "total")

    def __init__(self, since: float) -> None:
        self.since = since
        self.head = b""
        self.pieces: dict[int, bytes] = {}
        self.bytes = 0
        self.total: int | None = None


class Reassembler:
    """Puts fragments together. ``given_up``: packets of which the rest never came."""

    def __init__(self) -> None:
        self._waiting: dict[_Key, _Parts] = {}  # the oldest first
        self._bytes = 0
        self.given_up = 0

    def __len__(self) -> int:
        """How many packets are unfinished."""
        return len(self._waiting)

    def feed(self, ip: IpPacket, packet: Buffer, now: float) -> bytes | None:
        """Take a fragment; the whole packet, once this was the last of it.

        ``now``: any steady clock. Fragments that overlap end their packet (RFC 5722).
        """
        part = ip.fragment
        if part is None:
            return bytes(packet[: ip.end])
        start = ip.transport if ip.family == 4 else _behind_fragment_header(packet)
        body = bytes(packet[start : ip.end])
        # With IPv6 the protocol of later fragments is what the first one begins with.
        protocol = ip.protocol if ip.family == 4 else packet[start - 8]
        key = _Key(ip.source, ip.destination, protocol, part.identification)
        parts = self._waiting.get(key)
        if parts is None:
            parts = self._waiting[key] = _Parts(now)
        known = parts.pieces.get(part.offset)
        if known is not None and len(known) == len(body):
            return None
        if known is not None or not body:
            self._give_up(key)
            return None
        parts.pieces[part.offset] = body
        parts.bytes += len(body)
        self._bytes += len(body)
        if not part.offset:
            parts.head = _head(ip, packet, protocol)
        if not part.more:
            parts.total = part.offset + len(body)
        whole = self._finished(key, parts)
        self._make_room(key)
        return whole

    def expire(self, now: float) -> None:
        """Give up what has waited for too long."""
        for key, parts in list(self._waiting.items()):
            if now - parts.since < PATIENCE_S:
                return
            self._give_up(key)

    def _finished(self, key: _Key, parts: _Parts) -> bytes | None:
        if parts.total is None or not parts.head or parts.bytes < parts.total:
            return None
        at = 0
        for offset in sorted(parts.pieces):
            if offset != at:  # a hole, so elsewhere they overlap
                self._give_up(key)
                return None
            at += len(parts.pieces[offset])
        body = b"".join(parts.pieces[offset] for offset in sorted(parts.pieces))
        self._forget(key)
        if at != parts.total or len(parts.head) + len(body) > _LARGEST + V6_HEADER:
            self.given_up += 1
            return None
        return _with_length(parts.head, body)

    def _make_room(self, but: _Key) -> None:
        while len(self._waiting) > MOST or self._bytes > MOST_BYTES:
            oldest = next(iter(self._waiting))
            self._give_up(oldest)
            if oldest == but:
                return

    def _give_up(self, key: _Key) -> None:
        self._forget(key)
        self.given_up += 1

    def _forget(self, key: _Key) -> None:
        self._bytes -= self._waiting.pop(key).bytes


def split(packet: bytes, mtu: int, identification: int) -> list[bytes]:
    """An IPv6 packet as the fragments that its sender has to make of it; itself, if it fits.

    ``mtu`` is at least 1280. An IPv4 packet is left whole: routers cut it where they must.
    """
    if packet[0] >> 4 == 4 or len(packet) <= mtu:
        return [packet]
    step = (mtu - V6_HEADER - 8) & ~7
    body, protocol = packet[V6_HEADER:], packet[6]
    pieces = []
    for at in range(0, len(body), step):
        piece = body[at : at + step]
        more = at + step < len(body)
        head = packet[:4] + struct.pack("!HBB", 8 + len(piece), _FRAGMENT_HEADER, packet[7])
        fragment = struct.pack("!BBHI", protocol, 0, at | more, identification & 0xFFFF_FFFF)
        pieces.append(head + packet[8:V6_HEADER] + fragment + piece)
    return pieces


def _behind_fragment_header(packet: Buffer) -> int:
    """Where the fragment's own part begins; the packet is known to have such a header."""
    protocol, at = packet[6], V6_HEADER
    while protocol != _FRAGMENT_HEADER:
        protocol, at = packet[at], at + 8 * (packet[at + 1] + 1)
    return at + 8


def _head(ip: IpPacket, packet: Buffer, protocol: int) -> bytes:
    """The headers of the whole: those that are read again, so none of IPv6's extensions."""
    if ip.family == 4:
        head = bytes(packet[: ip.transport])
        return head[:6] + b"\0\0" + head[8:10] + b"\0\0" + head[12:]
    return bytes(packet[:6]) + bytes([protocol]) + bytes(packet[7:V6_HEADER])


def _with_length(head: bytes, body: bytes) -> bytes | None:
    if head[0] >> 4 == 6:
        return head[:4] + len(body).to_bytes(2, "big") + head[6:] + body
    if len(head) + len(body) > _LARGEST:
        return None
    head = head[:2] + (len(head) + len(body)).to_bytes(2, "big") + head[4:]
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body
