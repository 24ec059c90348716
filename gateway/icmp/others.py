"""Protocols that the gateway carries not at all: refused, as a router that cannot route them."""

from __future__ import annotations

from gateway.icmp.errors import ErrorWriter
from gateway.wire.icmp_error import IcmpError
from gateway.wire.icmp_packet import next_header_at
from gateway.wire.ip import IpPacket, Vnet


class OtherProtocols:
    """Says that nobody here knows the protocol: GRE, ESP, SCTP, IGMP and all others.

    RFC 792 (destination unreachable, protocol); RFC 4443 section 3.4 (parameter problem,
    unrecognized next header). Both are told by the destination, in whose name it is done.
    """

    def __init__(self, errors: ErrorWriter) -> None:
        self._errors = errors

    def take(self, ip: IpPacket, vnet: Vnet, packet: memoryview) -> str:
        """Refuse a packet."""
        del vnet
        info = next_header_at(ip, packet) if ip.family == 6 else 0
        self._errors.tell(packet, IcmpError.PROTOCOL_UNREACHABLE, info=info)
        return "protocol"

    def expire(self, now: float) -> None:
        """Nothing is remembered."""

    def close(self) -> None:
        """Nothing is held."""
