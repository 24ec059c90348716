"""ICMP errors about a packet, as its sender is told them (RFC 792, RFC 4443).

The datagram itself is gone when the error comes back from the other side of a proxy: what
an error must quote of it (the IP header and the first eight bytes) is made anew from the
flow's two ends, by which a sender finds the socket.
"""

from __future__ import annotations

import struct
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from gateway.flow import Endpoint

_UDP: Final = 17
_UDP_HEADER_BYTES: Final = 8


class IcmpError(Enum):
    """What a sender may be told; the values are type and code of both families."""

    PORT_UNREACHABLE = ((3, 3), (1, 4))
    HOST_UNREACHABLE = ((3, 1), (1, 3))
    NET_UNREACHABLE = ((3, 0), (1, 0))
    PROHIBITED = ((3, 13), (1, 1))
    TOO_BIG = ((3, 4), (2, 0))
    TIME_EXCEEDED = ((11, 0), (3, 0))
    PROTOCOL_UNREACHABLE = ((3, 2), (4, 1))


def from_wire(family: int, kind: int, code: int) -> IcmpError | None:
    """The error of that type and code (``family`` 4 or 6); None: not one to pass on."""
    for error in IcmpError:
        if error.value[family == 6] == (kind, code):
            return error
    if (family, kind) in ((4, 3), (6, 1)):
        return IcmpError.HOST_UNREACHABLE
    return None


def encode(error: IcmpError, source: Endpoint, destination: Endpoint, mtu: int = 0) -> bytes:
    """The ICMP message about a datagram that ``source`` sent to ``destination``.

    For IPv4 with its checksum; for IPv6 the kernel computes it (RFC 3542 section 3.1).
    ``mtu``: of the link that ``TOO_BIG`` is about.
    """
    udp = struct.pack("!HHHH", source.port, destination.port, _UDP_HEADER_BYTES, 0)
    if ":" in source.host:
        kind, code = error.value[1]
        quoted = struct.pack("!IHBB", 6 << 28, _UDP_HEADER_BYTES, _UDP, 64)
        quoted += IPv6Address(source.host).packed + IPv6Address(destination.host).packed
        return struct.pack("!BBHI", kind, code, 0, mtu) + quoted + udp
    kind, code = error.value[0]
    quoted = struct.pack("!BBHHHBBH", 0x45, 0, 20 + _UDP_HEADER_BYTES, 0, 0x4000, 64, _UDP, 0)
    quoted += IPv4Address(source.host).packed + IPv4Address(destination.host).packed
    quoted = quoted[:10] + checksum(quoted).to_bytes(2, "big") + quoted[12:]
    message = struct.pack("!BBHHH", kind, code, 0, 0, min(mtu, 0xFFFF)) + quoted + udp
    return message[:2] + checksum(message).to_bytes(2, "big") + message[4:]


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    # Since 65536 is 1 modulo 65535, the whole as one number has the same remainder as the sum of
    # its 16-bit words; a sum that is not 0 never folds to 0.
    total = int.from_bytes(data, "big")
    return ~(total % 0xFFFF or (total and 0xFFFF)) & 0xFFFF
