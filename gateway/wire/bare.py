"""IP packets without their options, for what ends here and not where they were sent to.

Sources: RFC 791 section 3.1 (IPv4's options) with RFC 7126 (which of them a gateway lets pass),
RFC 8200 section 4 (IPv6's extension headers).
"""

from __future__ import annotations

from typing import Final

from gateway.wire.ip import V4_HEADER, V6_HEADER, Buffer, IpPacket, checksum

_END: Final = 0
_NO_OPERATION: Final = 1
#: Loose and strict: other hosts are to see the packet first (RFC 7126 sections 4.3 and 4.4).
_SOURCE_ROUTES: Final = frozenset({131, 137})

_HOP_BY_HOP, _ROUTING, _FRAGMENT, _FOR_DESTINATION = 0, 43, 44, 60
_PAD_1: Final = 0
#: Whoever does not know such an option must not take the packet (RFC 8200 section 4.2).
_MUST_BE_KNOWN: Final = 0xC0


def bare(ip: IpPacket, packet: Buffer) -> bytes | None:
    """A whole packet, up to its end, without options or extension headers.

    None where they forbid it: they are malformed, lead by other hosts first, or mean something
    to the destination that has to be known there.
    """
    return _bare_v4(ip, packet) if ip.family == 4 else _bare_v6(ip, packet)


def _bare_v4(ip: IpPacket, packet: Buffer) -> bytes | None:
    at = V4_HEADER
    while at < ip.transport and packet[at] != _END:
        if packet[at] == _NO_OPERATION:
            at += 1
            continue
        size = packet[at + 1] if at + 1 < ip.transport else 0
        if size < 2 or at + size > ip.transport or packet[at] in _SOURCE_ROUTES:
            return None
        at += size
    total = V4_HEADER + ip.end - ip.transport
    head = b"\x45" + bytes(packet[1:2]) + total.to_bytes(2, "big")
    head += bytes(packet[4:10]) + b"\0\0" + bytes(packet[12:V4_HEADER])
    head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
    return head + bytes(packet[ip.transport : ip.end])


def _bare_v6(ip: IpPacket, packet: Buffer) -> bytes | None:
    kind, at = packet[6], V6_HEADER
    while at < ip.transport:
        size = 8 * (packet[at + 1] + 1)
        if kind in (_HOP_BY_HOP, _FOR_DESTINATION):
            if not _may_be_ignored(packet[at + 2 : at + size]):
                return None
        elif kind == _FRAGMENT:  # an atomic one
            size = 8
        elif kind != _ROUTING or packet[at + 3]:  # segments that are left
            return None
        kind, at = packet[at], at + size
    length = ip.end - ip.transport
    head = bytes(packet[:4]) + length.to_bytes(2, "big") + bytes((kind,))
    return head + bytes(packet[7:V6_HEADER]) + bytes(packet[ip.transport : ip.end])


def _may_be_ignored(options: Buffer) -> bool:
    """Whether somebody may take the packet who knows none of its options."""
    at = 0
    while at < len(options):
        kind = options[at]
        if kind == _PAD_1:
            at += 1
            continue
        if kind & _MUST_BE_KNOWN or at + 2 > len(options):
            return False
        at += 2 + options[at + 1]
    return at == len(options)
