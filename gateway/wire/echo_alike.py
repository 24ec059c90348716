"""Echo requests of one ping, told from others without being parsed.

They differ in their numbers, their data, and what follows from these. An idle gateway's
processor has forgotten the code that reads a packet: half of a ping's time went there.
"""

from __future__ import annotations

import struct
from typing import Final

from gateway.wire.ip import ICMP, ICMPV6, PLAIN_V4, V4_HEADER, V6_HEADER, Buffer

#: Parts of a packet, in its order.
Parts = tuple[bytes, ...]

_V4_PROTOCOL: Final = 9
_V6_NEXT_HEADER: Final = 6
_MESSAGE: Final = 8
#: Without IPv4's identification and checksum, ICMP's checksum, number and data.
_V4: Final = struct.Struct("!4s2x4s2x10s2x2s")
_V6: Final = struct.Struct("!42s2x2s")


def common_parts(packet: Buffer, at: int = 0) -> tuple[int, Parts] | None:
    """Where the ICMP message of a packet begins, and what other requests share with it.

    The packet begins ``at`` in the buffer. None: it carries something else, or has options.
    """
    room = len(packet) - at
    if room < V4_HEADER + _MESSAGE:
        return None
    if packet[at] == PLAIN_V4:
        if packet[at + _V4_PROTOCOL] != ICMP:
            return None
        return at + V4_HEADER, _V4.unpack_from(packet, at)
    if packet[at + _V6_NEXT_HEADER] != ICMPV6 or room < V6_HEADER + _MESSAGE:
        return None
    return at + V6_HEADER, _V6.unpack_from(packet, at)
