"""The header of datagrams to and from a SOCKS5 relay (RFC 1928 section 7), without I/O.

::

    +-----+------+------+----------+----------+----------+
    | RSV | FRAG | ATYP | DST.ADDR | DST.PORT |   DATA   |
    +-----+------+------+----------+----------+----------+
    |  2  |  1   |  1   | Variable |    2     | Variable |
    +-----+------+------+----------+----------+----------+
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address

from gateway.errors import ProtocolError
from gateway.flow import Endpoint
from gateway.wire.socks5 import IPV4, IPV6, NAME, decode_address, encode_address

IPV4_HEADER_BYTES = 10
IPV6_HEADER_BYTES = 22


class FragmentError(ProtocolError):
    """A fragment: nobody sends them, and who does not reassemble must drop them."""


@lru_cache(maxsize=1024)
def encode_header(target: Endpoint) -> bytes:
    """The header of a whole datagram for ``target``.

    Remembered, because flows repeat their destinations. Raises ``ValueError`` as
    ``encode_address`` does.
    """
    return b"\0\0\0" + encode_address(target)


def header_size(datagram: bytes | memoryview) -> int:
    """Bytes of the header in front of a datagram's data.

    Raises ``FragmentError``, or ``ProtocolError`` where it has no whole header.
    """
    if len(datagram) < IPV4_HEADER_BYTES - 2:  # the shortest has a name of one byte
        raise ProtocolError("a relayed datagram is shorter than its header")
    if datagram[2]:
        raise FragmentError("a relayed datagram is a fragment")
    kind = datagram[3]
    if kind == IPV4:
        size = IPV4_HEADER_BYTES
    elif kind == IPV6:
        size = IPV6_HEADER_BYTES
    elif kind == NAME:
        size = 7 + datagram[4]
    else:
        raise ProtocolError(f"a relayed datagram has address type {kind:#04x}")
    if len(datagram) < size:
        raise ProtocolError("a relayed datagram is shorter than its header")
    return size


def decode_header(header: bytes) -> Endpoint:
    """Who sent the datagram, from its whole header; IPv4-mapped addresses are IPv4.

    Raises ``ProtocolError`` for a name that is none.
    """
    source = decode_address(header[3:])
    if source is None:
        raise ProtocolError("a relayed datagram has a name that is none")
    return source


def relay_address(bound: Endpoint | None, server: Endpoint) -> Endpoint:
    """Where the relay of an association takes datagrams.

    ``bound`` is what the server says, ``server`` the address that it was reached by. A server
    behind a translator, or one that listens on every address, tells one that is of no use
    to us: then it is reached as before, on the port that it told.
    """
    if bound is None:
        return server
    return bound if _is_of_use(bound.host, server.host) else Endpoint(server.host, bound.port)


@lru_cache(maxsize=256)
def _is_of_use(host: str, server: str) -> bool:
    """Whether what a server tells is an address that can be reached as it was itself."""
    try:
        told, reached = ip_address(host), ip_address(server)
    except ValueError:  # a name: the server is where it was a moment ago
        return False
    useless = told.is_unspecified or told.is_multicast
    inner = told.is_private and not reached.is_private
    wrong_family = told.version != reached.version
    return not (useless or inner or wrong_family or (told.is_loopback and not reached.is_loopback))
