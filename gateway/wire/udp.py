"""UDP datagrams with their headers (RFC 768), for sockets that do not write them."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Final

from gateway.flow import Endpoint

_HEADER: Final = struct.Struct("!HHHH")
_PROTOCOL: Final = 17
#: 2**16 - 1: sums that differ by a multiple of it are one in ones' complement (RFC 1071).
_ONES: Final = 0xFFFF


def encode_datagram(source: Endpoint, destination: Endpoint, data: bytes) -> bytes:
    """Header, with its checksum, and data. Raises ``ValueError`` where they are too long."""
    length = _HEADER.size + len(data)
    if length > _ONES:
        raise ValueError(f"a datagram of {length} bytes")
    addresses = ip_address(source.host).packed + ip_address(destination.host).packed
    header = _HEADER.pack(source.port, destination.port, length, 0)
    summed = addresses + struct.pack("!HH", _PROTOCOL, length) + header + data
    # As one number, shifted to whole 16-bit words: its remainder is the sum of the words.
    total = (int.from_bytes(summed, "big") << 8 * (len(summed) % 2)) % _ONES
    # 0 would say that there is none; both are the same in ones' complement.
    return header[:6] + ((_ONES - total) or _ONES).to_bytes(2, "big") + data
