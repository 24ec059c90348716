"""How an accepted flow's first packet came: by which interface, and with which DSCP."""

from __future__ import annotations

import socket
import struct
from socket import SocketType
from typing import Final, NamedTuple

from gateway.kernel.sockaddr import control_messages
from gateway.kernel.sockets import IP_PKTINFO, IPV6_PKTINFO

IP_TOS = 1
IP_PKTOPTIONS = 9
IPV6_2292PKTOPTIONS = 6
IPV6_TCLASS = 67


class Arrival(NamedTuple):
    """How a flow's first packet came: index of its interface (0: unknown), and its DSCP."""

    interface: int
    dscp: int | None


UNKNOWN_ARRIVAL: Final = Arrival(0, None)


def arrival(sock: SocketType) -> Arrival:
    """How the SYN of an accepted flow came.

    A TCP socket keeps it as the control data of its last "datagram" (ip(7)
    ``IP_PKTOPTIONS``; for IPv6 RFC 2292 section 4).
    """
    if sock.family == socket.AF_INET6:
        raw = sock.getsockopt(socket.IPPROTO_IPV6, IPV6_2292PKTOPTIONS, 256)
        info, index_at, traffic_class = IPV6_PKTINFO, 16, IPV6_TCLASS  # the address comes first
    else:
        raw = sock.getsockopt(socket.IPPROTO_IP, IP_PKTOPTIONS, 256)
        info, index_at, traffic_class = IP_PKTINFO, 0, IP_TOS
    index, dscp = UNKNOWN_ARRIVAL
    for _, kind, data in control_messages(raw):
        if kind == info:
            (index,) = struct.unpack_from("i", data, index_at)
        elif kind == traffic_class:
            # RFC 2474 section 3: the upper six bits; ECN has the others.
            dscp = struct.unpack_from("i", data)[0] >> 2
    return Arrival(index, dscp)


def interface_name(index: int) -> str:
    """Name of an interface; empty for none (0), and for one that is gone."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""
