"""IP packets as they go through a TUN: headers, checksums, and packets made anew.

Sources: RFC 791 (IPv4), RFC 8200 (IPv6), RFC 1071 and RFC 1624 (checksums), virtio 1.2
section 5.1.6 and <linux/virtio_net.h> (the header in front of each packet). Strict: what is
not as these say is a ``Malformed``, by whose value it is counted.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import Final, NamedTuple

from gateway.wire.icmp_error import checksum
from gateway.wire.packet import ICMP, ICMPV6, TCP, UDP

__all__ = ["ICMP", "ICMPV6", "TCP", "UDP", "checksum"]

Buffer = bytes | bytearray | memoryview

#: ``struct virtio_net_hdr``, in the byte order of this machine.
VNET: Final = struct.Struct("=BBHHHH")
VNET_BYTES: Final = VNET.size
#: Nothing is left to do: the checksum is there, and the packet is one.
NO_OFFLOAD: Final = bytes(VNET_BYTES)
NEEDS_CSUM: Final = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4 = 0, 1, 4, 5

V4_HEADER: Final = 20
#: The first byte of a packet with such a header.
PLAIN_V4: Final = 0x45
V6_HEADER: Final = 40
_FRAGMENT: Final = 44
_NO_NEXT: Final = 59
#: Hop-by-hop, routing, fragment, destination options, mobility, HIP, shim6: each with its length.
_EXTENSIONS: Final = frozenset({0, 43, _FRAGMENT, 60, 135, 139, 140})
_MOST_EXTENSIONS: Final = 8
#: What a packet can carry, put together.
_MOST: Final = 0xFFFF

_V4: Final = struct.Struct("!BBHHHBBH4s4s")
_V6: Final = struct.Struct("!IHBB16s16s")
_TCP: Final = struct.Struct("!HHIIBBHHH")
_UDP: Final = struct.Struct("!HHHH")

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


class Malformed(StrEnum):
    """Why something is no packet. The values stand in names of counters."""

    VERSION = "version"
    SHORT = "short"
    LENGTH = "length"
    CHECKSUM = "checksum"
    EXTENSIONS = "extensions"
    TRANSPORT = "transport"


class Vnet(NamedTuple):
    """What the kernel left undone of a packet that it hands over, or is to do of one it takes.

    ``flags`` has ``NEEDS_CSUM``: from ``csum_start`` on, a checksum belongs at ``csum_offset``
    behind it, where the sum of the pseudo header stands. ``gso_type`` other than ``GSO_NONE``:
    the packet is many, whose headers have ``header`` bytes and whose payloads ``gso_size``.
    """

    flags: int = 0
    gso_type: int = GSO_NONE
    header: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    def pack(self) -> bytes:
        """As it stands in front of the packet."""
        return VNET.pack(*self)


def read_vnet(frame: Buffer) -> Vnet:
    """The header of a frame, which has at least ``VNET_BYTES``."""
    return Vnet(*VNET.unpack_from(frame))


class Fragment(NamedTuple):
    """What part of a packet this is: ``offset`` in bytes; ``more`` follow."""

    identification: int
    offset: int
    more: bool


class IpPacket(NamedTuple):
    """The IP header of a packet, read.

    ``family`` is 4 or 6; ``protocol`` IANA's number of what is carried; addresses are 4 or 16
    bytes; ``ttl`` the hop limit. What is carried stands from ``transport`` up to ``end``,
    counted from the packet's first byte. ``traffic_class``: DSCP and ECN.
    """

    family: int
    protocol: int
    source: bytes
    destination: bytes
    ttl: int
    transport: int
    end: int
    fragment: Fragment | None
    traffic_class: int = 0


class TcpHeader(NamedTuple):
    """A TCP header (RFC 9293); ``size`` in bytes, options included."""

    source: int
    destination: int
    sequence: int
    acknowledgement: int
    size: int
    flags: int


class UdpHeader(NamedTuple):
    """A UDP header (RFC 768). ``checksum`` is 0 where the sender made none."""

    source: int
    destination: int
    length: int
    checksum: int


def read_ip(packet: Buffer) -> IpPacket | Malformed:
    """The header of a packet, which may be a super-packet of up to 64 KiB."""
    if len(packet) < V4_HEADER:
        return Malformed.SHORT
    version = packet[0] >> 4
    if version == 4:
        return _read_v4(packet)
    return _read_v6(packet) if version == 6 else Malformed.VERSION


def _read_v4(packet: Buffer) -> IpPacket | Malformed:
    first, tos, total, identification, part, ttl, protocol, _, source, destination = (
        _V4.unpack_from(packet)
    )
    size = (first & 0x0F) * 4
    if size < V4_HEADER or total < size or total > len(packet):
        return Malformed.LENGTH
    if checksum(bytes(packet[:size])):
        return Malformed.CHECKSUM
    offset, more = (part & 0x1FFF) * 8, bool(part & 0x2000)
    fragment = None
    if offset or more:
        if offset + total - size > _MOST or (more and (total - size) % 8):
            return Malformed.LENGTH
        fragment = Fragment(identification, offset, more)
    return IpPacket(4, protocol, source, destination, ttl, size, total, fragment, tos)


def _read_v6(packet: Buffer) -> IpPacket | Malformed:
    if len(packet) < V6_HEADER:
        return Malformed.SHORT
    first, length, protocol, ttl, source, destination = _V6.unpack_from(packet)
    end = V6_HEADER + length
    if end > len(packet):
        return Malformed.LENGTH
    at = V6_HEADER
    fragment: Fragment | None = None
    for _ in range(_MOST_EXTENSIONS):
        if protocol not in _EXTENSIONS or (fragment is not None and fragment.offset):
            break  # what carries data, or the middle of something
        if at + 8 > end:
            return Malformed.EXTENSIONS
        following, size = packet[at], 8 * (packet[at + 1] + 1)
        if protocol == _FRAGMENT:
            size = 8
            part = _read_v6_fragment(packet, at, end)
            if isinstance(part, Malformed):
                return part
            fragment = part
        protocol, at = following, at + size
        if at > end:
            return Malformed.EXTENSIONS
    else:
        return Malformed.EXTENSIONS
    if protocol == _NO_NEXT:
        return Malformed.TRANSPORT
    traffic_class = first >> 20 & 0xFF
    return IpPacket(6, protocol, source, destination, ttl, at, end, fragment, traffic_class)


def _read_v6_fragment(packet: Buffer, at: int, end: int) -> Fragment | Malformed | None:
    """None: an atomic fragment, which is whole (RFC 6946)."""
    part, identification = struct.unpack_from("!HI", packet, at + 2)
    offset, more, size = part & 0xFFF8, bool(part & 1), end - at - 8
    if offset + size > _MOST or (more and size % 8):
        return Malformed.LENGTH
    return Fragment(identification, offset, more) if offset or more else None


def read_tcp(packet: Buffer, ip: IpPacket) -> TcpHeader | Malformed:
    """The TCP header of a whole packet; its checksum is the kernel's to test."""
    if ip.end - ip.transport < _TCP.size:
        return Malformed.TRANSPORT
    source, destination, sequence, acknowledgement, size, flags, _, _, _ = _TCP.unpack_from(
        packet, ip.transport
    )
    size = (size >> 4) * 4
    if size < _TCP.size or ip.transport + size > ip.end or not source or not destination:
        return Malformed.TRANSPORT
    return TcpHeader(source, destination, sequence, acknowledgement, size, flags)


def read_udp(packet: Buffer, ip: IpPacket) -> UdpHeader | Malformed:
    """The UDP header of a whole packet; the datagram's payload follows it."""
    if ip.end - ip.transport < _UDP.size:
        return Malformed.TRANSPORT
    header = UdpHeader(*_UDP.unpack_from(packet, ip.transport))
    # A super-packet's length is that of all its datagrams, or of the first.
    if not _UDP.size <= header.length <= ip.end - ip.transport or not header.destination:
        return Malformed.TRANSPORT
    return header


# --- checksums -------------------------------------------------------------------------------


def fold(total: int) -> int:
    """A sum of 16-bit words, with its carries added in (RFC 1071 section 2)."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def words(data: bytes) -> int:
    """The sum of 16-bit words of data of even length, folded."""
    return fold(sum(struct.unpack(f"!{len(data) // 2}H", data)))


def delta(before: bytes, after: bytes) -> int:
    """What replacing ``before`` by ``after`` (of one even length) adds to a sum of words.

    The contrary of a checksum (RFC 1624 section 3, equation 3).
    """
    return fold(words(after) + (~words(before) & 0xFFFF))


def transport_checksum(source: bytes, destination: bytes, protocol: int, data: bytes) -> int:
    """The checksum of TCP, UDP or ICMPv6, over the pseudo header (RFC 8200 section 8.1) and data.

    ``data``: the whole segment, its checksum field zero. UDP's 0 is written 0xFFFF.
    """
    pseudo = source + destination + struct.pack("!II", len(data), protocol)
    result = checksum(pseudo + data)
    return 0xFFFF if protocol == UDP and not result else result


# --- packets made anew -------------------------------------------------------------------------


def ip_packet(
    source: bytes, destination: bytes, protocol: int, payload: bytes, *, ttl: int = 64
) -> bytes:
    """A whole packet, not to be fragmented, around what it carries."""
    if len(source) == 16:
        return _V6.pack(6 << 28, len(payload), protocol, ttl, source, destination) + payload
    header = _V4.pack(
        PLAIN_V4, 0, V4_HEADER + len(payload), 0, 0x4000, ttl, protocol, 0, source, destination
    )
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + payload


def tcp_reset(ip: IpPacket, tcp: TcpHeader) -> bytes | None:
    """The RST that answers a segment nobody knows (RFC 9293 section 3.10.7.1); None to a RST."""
    if tcp.flags & RST:
        return None
    if tcp.flags & ACK:
        sequence, acknowledgement, flags = tcp.acknowledgement, 0, RST
    else:
        length = ip.end - ip.transport - tcp.size
        length += bool(tcp.flags & SYN) + bool(tcp.flags & FIN)
        sequence, acknowledgement, flags = 0, (tcp.sequence + length) & 0xFFFF_FFFF, RST | ACK
    segment = _TCP.pack(
        tcp.destination, tcp.source, sequence, acknowledgement, 5 << 4, flags, 0, 0, 0
    )
    check = transport_checksum(ip.destination, ip.source, TCP, segment)
    segment = segment[:16] + check.to_bytes(2, "big") + segment[18:]
    return ip_packet(ip.destination, ip.source, TCP, segment)


def udp_packet(
    source: bytes, source_port: int, destination: bytes, destination_port: int, payload: bytes
) -> bytes:
    """A packet with one datagram, its checksum made."""
    datagram = udp_datagram(source, source_port, destination, destination_port, payload)
    return ip_packet(source, destination, UDP, datagram)


def udp_datagram(
    source: bytes, source_port: int, destination: bytes, destination_port: int, payload: bytes
) -> bytes:
    """Header, with its checksum, and payload. Raises ``struct.error`` where they are too long."""
    datagram = _UDP.pack(source_port, destination_port, _UDP.size + len(payload), 0) + payload
    check = transport_checksum(source, destination, UDP, datagram)
    return datagram[:6] + check.to_bytes(2, "big") + payload
