"""The first packet of a flow, byte by byte, as a LAN host or this machine would send it.

Each carries a number of its own, 64 bits behind its IP header, so that it can be told from
others wherever it comes out: the acknowledgement field of a SYN, the payload of UDP and ICMP.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address

from gateway.flow import FlowFacts, Protocol

_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.ICMP: 1}
_ICMPV6, _ECHO, _ECHO_V6 = 58, 8, 128
_SYN = 0x5002  # data offset 5, SYN
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}


def frame(facts: FlowFacts, number: int, to_mac: bytes) -> bytes:
    """The Ethernet frame of a LAN host."""
    from_mac = bytes.fromhex((facts.mac or "").replace(":", ""))
    etherype = _ETHERTYPE[ip_address(facts.source.host).version]
    return to_mac + from_mac + struct.pack("!H", etherype) + packet(facts, number)


def packet(facts: FlowFacts, number: int) -> bytes:
    """The IP packet. ``number`` is what it can be recognised by."""
    source, destination = ip_address(facts.source.host), ip_address(facts.destination.host)
    protocol = _NUMBERS[facts.protocol]
    if source.version == 6 and facts.protocol is Protocol.ICMP:
        protocol = _ICMPV6
    payload, checksum_at = _payload(facts, number, protocol)
    pseudo = b""
    if protocol != _NUMBERS[Protocol.ICMP]:
        pseudo = source.packed + destination.packed + struct.pack("!II", len(payload), protocol)
    payload = _with(payload, checksum_at, _checksum(pseudo + payload))
    dscp = facts.dscp or 0
    if source.version == 4:
        head = struct.pack("!BBHHHBBH", 0x45, dscp << 2, 20 + len(payload), 0, 0, 64, protocol, 0)
        head += source.packed + destination.packed
        head = _with(head, 10, _checksum(head))
    else:
        head = struct.pack("!IHBB", 6 << 28 | dscp << 22, len(payload), protocol, 64)
        head += source.packed + destination.packed
    return head + payload


def _payload(facts: FlowFacts, number: int, protocol: int) -> tuple[bytes, int]:
    """The transport's header with an empty checksum, and where that stands."""
    ports = (facts.source.port, facts.destination.port)
    match facts.protocol:
        case Protocol.TCP:
            return struct.pack("!HHIIHHHH", *ports, 1, number, _SYN, 1024, 0, 0), 16
        case Protocol.UDP:
            return struct.pack("!HHHHI", *ports, 12, 0, number), 6
    echo = _ECHO_V6 if protocol == _ICMPV6 else _ECHO
    return struct.pack("!BBHHHI", echo, 0, 0, number & 0xFFFF, 0, number), 2


def _with(data: bytes, place: int, checksum: int) -> bytes:
    return data[:place] + struct.pack("!H", checksum) + data[place + 2 :]


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); all lengths here are even."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
