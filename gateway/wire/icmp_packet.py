"""ICMP in whole IP packets, as a TUN hands them out and takes them (RFC 792, RFC 4443)."""

from __future__ import annotations

import struct
from enum import StrEnum
from functools import lru_cache
from ipaddress import ip_address
from typing import Final, NamedTuple

from gateway.wire.icmp_error import IcmpError, checksum
from gateway.wire.ip import ICMP, ICMPV6, PLAIN_V4, UDP, Buffer, IpPacket, read_ip

#: Type of an echo request and of its reply, by address family.
_REQUEST: Final = {4: 8, 6: 128}
_REPLY: Final = {4: 0, 6: 129}
#: Types that tell of an error: nobody answers one with another (RFC 1122 section 3.2.2).
_V4_ERRORS: Final = frozenset({3, 4, 5, 11, 12})
_V6_INFORMATION: Final = 128
_TOO_BIG: Final = 2
#: Of each family, those that tell of a packet; a redirect is about its sender's own routes.
_TOLD: Final = {4: frozenset({3, 11, 12}), 6: frozenset(range(_V6_INFORMATION))}
#: Before what an error quotes; where in that the ends stand, and how long they are.
_ERROR_HEADER: Final = 8
_V4_ENDS, _V4_ENDS_BYTES = 12, 12
_V6_ENDS, _V6_ENDS_BYTES = 8, 36
#: TCP's sequence number behind its ports, without which nobody believes an error (RFC 5927).
_NUMBER_BYTES: Final = 4
_ECHO: Final = struct.Struct("!BBHHH")
ECHO_HEADER: Final = _ECHO.size
_V4: Final = struct.Struct("!BBHHHBBH4s4s")
_V6: Final = struct.Struct("!IHBB16s16s")
_UDP_HEADER: Final = struct.Struct("!HHHH")
_HOP_LIMIT: Final = 64
#: The upper byte of IPv4's flags (RFC 791).
_DONT_FRAGMENT: Final = 0x40
#: The protocol of each family, by the size of its addresses in bytes.
_ICMP_OF: Final = {4: ICMP, 16: ICMPV6}
#: What an error quotes of the packet it is about, so that with its own headers it passes
#: everywhere: RFC 1812 section 4.3.2.3, RFC 4443 section 3.1.
_QUOTED: Final = {4: 576 - 28, 6: 1280 - 48}


class NoEcho(StrEnum):
    """Why a message is no echo request. The values stand in names of counters."""

    SHORT = "icmp_short"
    CHECKSUM = "icmp_checksum"
    #: It tells of an error, of which nobody may be told.
    ERROR = "icmp_error"
    #: It asks for something else, or is the answer to what nobody asked.
    OTHER = "icmp_other"


class Echo(NamedTuple):
    """An echo request: addresses as text, ``data`` behind its ICMP header.

    ``whole``: it must not be fragmented on its way (its sender forbids it, or, as IPv6 has it,
    has not done so).
    """

    source: str
    destination: str
    identifier: int
    sequence: int
    hop_limit: int
    whole: bool
    data: bytes

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.source else 4


class QuotedError(NamedTuple):
    """An ICMP error about a packet without options; ``message`` is all of it, from its type on.

    ``ends`` are the quoted packet's, from its source address to its destination port.
    """

    protocol: int
    ends: bytes
    message: bytes

    @property
    def too_big(self) -> int:
        """The MTU that an IPv6 router tells of (bytes; RFC 4443 section 3.2); 0: no such error."""
        told = len(self.ends) == _V6_ENDS_BYTES and self.message[0] == _TOO_BIG
        return int.from_bytes(self.message[4:8], "big") if told else 0

    def about(self, ends: bytes) -> bytes:
        """The same message about a packet with other ends; its checksum is 0.

        That of the quoted header is left: it stands there for nobody to test.
        """
        at = _ERROR_HEADER + (_V4_ENDS if len(ends) == _V4_ENDS_BYTES else _V6_ENDS)
        message = self.message
        return message[:2] + bytes(2) + message[4:at] + ends + message[at + len(ends) :]


def read_error(ip: IpPacket, packet: Buffer) -> QuotedError | None:
    """The error that a whole ICMP packet tells; None where it is none, or quotes too little."""
    if ip.transport == ip.end or packet[ip.transport] not in _TOLD[ip.family]:
        return None
    message = bytes(packet[ip.transport : ip.end])
    if ip.family == 4:
        start, size, protocol_at = _V4_ENDS, _V4_ENDS_BYTES, 9
    else:
        start, size, protocol_at = _V6_ENDS, _V6_ENDS_BYTES, 6
    at = _ERROR_HEADER + start
    if len(message) < at + size + _NUMBER_BYTES:
        return None
    quoted = message[_ERROR_HEADER:]
    if ip.family == 4:
        later = int.from_bytes(quoted[6:8], "big") & 0x1FFF
        known = quoted[0] == PLAIN_V4 and not later
    else:
        known = quoted[0] >> 4 == 6
    if not known or checksum(icmp_pseudo(ip.source, ip.destination, len(message)) + message):
        return None
    return QuotedError(quoted[protocol_at], message[at : at + size], message)


@lru_cache(maxsize=4096)
def address_text(packed: bytes) -> str:
    """An address of 4 or 16 bytes in canonical text; one object for equal ones."""
    return str(ip_address(packed))


@lru_cache(maxsize=4096)
def address_bytes(text: str) -> bytes:
    """The inverse of ``address_text``."""
    return ip_address(text).packed


def read_echo(ip: IpPacket, packet: Buffer, *, reassembled: bool = False) -> Echo | NoEcho:
    """The echo request that a whole ICMP packet is; ``reassembled``: it came in fragments."""
    message = bytes(packet[ip.transport : ip.end])
    if len(message) < _ECHO.size:
        return NoEcho.SHORT
    family = ip.family
    kind, code, _, identifier, sequence = _ECHO.unpack_from(message)
    if kind != _REQUEST[family] or code:
        return NoEcho.ERROR if _is_error(family, kind) else NoEcho.OTHER
    if checksum(icmp_pseudo(ip.source, ip.destination, len(message)) + message):
        return NoEcho.CHECKSUM
    whole = not reassembled and (family == 6 or bool(packet[6] & _DONT_FRAGMENT))
    source, destination = address_text(ip.source), address_text(ip.destination)
    data = message[_ECHO.size :]
    return Echo(source, destination, identifier, sequence, ip.ttl, whole, data)


def echo_message(family: int, sequence: int, data: bytes) -> bytes:
    """An echo request for a ping socket, which fills in identifier and checksum itself."""
    return _ECHO.pack(_REQUEST[family], 0, 0, 0, sequence) + data


class EchoReplies:
    """Makes the packets that answer the requests of one ping, from where those went to."""

    __slots__ = ("_ends", "_head", "_identifier", "_kind", "_of", "_pseudo")

    def __init__(self, request: Echo) -> None:
        self._ends = address_bytes(request.destination), address_bytes(request.source)
        self._kind = _REPLY[request.family]
        self._identifier = request.identifier
        #: The last header, and of which size of message and hop limit that is.
        self._of = (0, 0)
        self._head = self._pseudo = b""

    def packet(self, sequence: int, data: bytes, hop_limit: int = _HOP_LIMIT) -> bytes:
        """That to the request of this number; IPv4's may be fragmented by routers."""
        size = _ECHO.size + len(data)
        if self._of != (size, hop_limit):
            self._of = (size, hop_limit)
            protocol = _ICMP_OF[len(self._ends[0])]
            self._head = _header(*self._ends, protocol, size, hop_limit)
            self._pseudo = icmp_pseudo(*self._ends, size)
        kind, identifier = self._kind, self._identifier
        message = _ECHO.pack(kind, 0, 0, identifier, sequence) + data
        check = checksum(self._pseudo + message)
        return self._head + _ECHO.pack(kind, 0, check, identifier, sequence) + data


def sent_request(request: Echo, sequence: int) -> bytes:
    """A request as its client sent it, as far as an error has to quote it.

    An error that the network tells quotes the packet that left, with other ends.
    """
    message = _ECHO.pack(_REQUEST[request.family], 0, 0, request.identifier, sequence)
    return icmp_packet(request.source, request.destination, message + request.data[:8], 1)


def sent_datagram(source: str, destination: str, ports: tuple[int, int]) -> bytes:
    """The same of a UDP datagram from and to these ``ports``."""
    ours, theirs = address_bytes(source), address_bytes(destination)
    head = _header(ours, theirs, UDP, _UDP_HEADER.size, 1)
    return head + _UDP_HEADER.pack(*ports, _UDP_HEADER.size, 0)


def error_packet(
    about: Buffer, error: IcmpError, *, info: int = 0, source: str = ""
) -> bytes | None:
    """The packet that tells a sender of an error; from ``source``, or whom it wanted to reach.

    ``info``: the MTU of "too big", or the place that is wrong. None where nobody may be told.
    """
    return raw_error_packet(about, error.value[about[0] >> 4 == 6], info=info, source=source)


def raw_error_packet(
    about: Buffer, kind_and_code: tuple[int, int], *, info: int = 0, source: str = ""
) -> bytes | None:
    """The same, of any type and code of the packet's family."""
    ip = read_ip(about)
    if not isinstance(ip, IpPacket) or not _may_be_told(ip, about):
        return None
    quoted = bytes(about[: min(ip.end, _QUOTED[ip.family])])
    message = struct.pack("!BBHI", *kind_and_code, 0, info) + quoted
    return icmp_packet(source or address_text(ip.destination), address_text(ip.source), message)


def next_header_at(ip: IpPacket, packet: Buffer) -> int:
    """Where the number of the protocol stands that a packet carries: what "pointer" points to."""
    if ip.family == 4:
        return 9
    at, following = 6, 40
    while following < ip.transport:
        at, following = following, following + 8 * (packet[following + 1] + 1)
    return at


def _may_be_told(ip: IpPacket, packet: Buffer) -> bool:
    """RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e): one host's first words to one other."""
    if ip.fragment is not None and ip.fragment.offset:
        return False
    for packed in (ip.source, ip.destination):
        address = ip_address(packed)
        if address.is_multicast or address.is_unspecified or packed == b"\xff\xff\xff\xff":
            return False
    if ip.protocol == (ICMPV6 if ip.family == 6 else ICMP):
        return ip.transport < ip.end and not _is_error(ip.family, packet[ip.transport])
    return True


def _is_error(family: int, kind: int) -> bool:
    return kind in _V4_ERRORS if family == 4 else kind < _V6_INFORMATION


def icmp_packet(
    source: str, destination: str, message: bytes, hop_limit: int = _HOP_LIMIT
) -> bytes:
    """A packet around a message whose checksum is still 0."""
    ours, theirs = address_bytes(source), address_bytes(destination)
    check = checksum(icmp_pseudo(ours, theirs, len(message)) + message)
    message = message[:2] + check.to_bytes(2, "big") + message[4:]
    return _header(ours, theirs, _ICMP_OF[len(ours)], len(message), hop_limit) + message


def _header(source: bytes, destination: bytes, protocol: int, size: int, ttl: int) -> bytes:
    """That of a packet that routers may fragment (IPv4), as what hosts answer with is."""
    if len(source) == 16:
        return _V6.pack(6 << 28, size, protocol, ttl, source, destination)
    head = _V4.pack(PLAIN_V4, 0, 20 + size, 0, 0, ttl, protocol, 0, source, destination)
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:]


def icmp_pseudo(source: bytes, destination: bytes, size: int) -> bytes:
    """What the checksum of ICMPv6 covers besides the message (RFC 8200 section 8.1)."""
    if len(source) == 4:
        return b""
    return source + destination + struct.pack("!II", size, ICMPV6)
