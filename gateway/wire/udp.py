"""UDP datagrams with their headers (RFC 768), for sockets that do not write them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

from gateway.flow import Endpoint
from gateway.wire.ip import udp_datagram

#: What one may have with its header of 8 bytes (RFC 768).
_LONGEST: Final = 0xFFFF


def encode_datagram(source: Endpoint, destination: Endpoint, data: bytes) -> bytes:
    """Header, with its checksum, and data. Raises ``ValueError`` where they are too long."""
    if len(data) + 8 > _LONGEST:
        raise ValueError(f"a datagram of {len(data) + 8} bytes")
    ours, theirs = (ip_address(end.host).packed for end in (source, destination))
    return udp_datagram(ours, source.port, theirs, destination.port, data)
