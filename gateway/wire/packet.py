"""Where an IP packet comes from and goes to, read off its headers (RFC 791, RFC 8200).

Of packets that the kernel has put together again (conntrack does), so fragments have none.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

TCP: Final = 6
UDP: Final = 17
ICMP: Final = 1
ICMPV6: Final = 58

_PORTS: Final = struct.Struct("!HH")
#: Extension headers that are skipped (RFC 8200 section 4): hop-by-hop, routing, destination.
_EXTENSIONS: Final = frozenset({0, 43, 60})
_MAX_EXTENSIONS: Final = 8
_V4_HEADER: Final = 20
_V6_HEADER: Final = 40
_FRAGMENT_OFFSET: Final = 0x1FFF


class Packet(NamedTuple):
    """``protocol`` is IANA's number; addresses are 4 or 16 bytes; ports are 0 but for TCP and UDP.

    ``dscp`` is 0 to 63. ``transport`` is where the header behind IP's begins.
    """

    protocol: int
    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    dscp: int
    transport: int


def read_packet(data: bytes) -> Packet | None:
    """The beginning of a packet; None where it is too short or not as the RFCs say."""
    if not data:
        return None
    version = data[0] >> 4
    if version == 4:
        return _read_v4(data)
    return _read_v6(data) if version == 6 else None


def _read_v4(data: bytes) -> Packet | None:
    length = (data[0] & 0x0F) * 4
    if len(data) < _V4_HEADER or length < _V4_HEADER:
        return None
    if (data[6] << 8 | data[7]) & _FRAGMENT_OFFSET:
        return None
    return _with_ports(data, data[9], data[12:16], data[16:20], data[1] >> 2, length)


def _read_v6(data: bytes) -> Packet | None:
    if len(data) < _V6_HEADER:
        return None
    protocol, at = data[6], _V6_HEADER
    for _ in range(_MAX_EXTENSIONS):
        if protocol not in _EXTENSIONS:
            dscp = (data[0] << 8 | data[1]) >> 6 & 0x3F
            return _with_ports(data, protocol, data[8:24], data[24:40], dscp, at)
        if len(data) < at + 2:
            return None
        protocol, at = data[at], at + 8 * (data[at + 1] + 1)
    return None


def _with_ports(
    data: bytes, protocol: int, source: bytes, destination: bytes, dscp: int, at: int
) -> Packet | None:
    if protocol not in (TCP, UDP):
        return Packet(protocol, source, destination, 0, 0, dscp, at)
    if len(data) < at + 8:
        return None
    ours, theirs = _PORTS.unpack_from(data, at)
    return Packet(protocol, source, destination, ours, theirs, dscp, at)
