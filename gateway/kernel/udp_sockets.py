"""The UDP sockets of the data plane, and the raw ones that tell clients of errors."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from socket import SocketType
from typing import NamedTuple

from gateway.flow import Endpoint
from gateway.kernel.datagrams import SOL_UDP, UDP_GRO, split_ends
from gateway.kernel.error_queue import ask_for_errors, told
from gateway.kernel.sockaddr import ORDER, control_messages, endpoint_of
from gateway.kernel.sockets import (
    IP_PKTINFO,
    IP_RECVTOS,
    IPV6_PKTINFO,
    IPV6_RECVPKTINFO,
    IPV6_RECVTCLASS,
    SocketFactory,
    SocketOptions,
    family_of,
    new_listener,
    set_transparent,
)

IP_TOS = 1
IPV6_TCLASS = 67
IP_RECVORIGDSTADDR = IP_ORIGDSTADDR = 20
IPV6_RECVORIGDSTADDR = IPV6_ORIGDSTADDR = 74
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
SO_ATTACH_FILTER = 26
IP_MTU_DISCOVER = 10
IP_PMTUDISC_DONT = 0

#: What a socket may queue (bytes): a burst must outlast a busy moment of ours.
LISTENER_QUEUE = 8 << 20
QUEUE = 2 << 20

#: Ancillary data of each datagram that a listener takes (bytes): struct in_pktinfo and
#: sockaddr_in, struct in6_pktinfo and sockaddr_in6.
_LISTENER_CONTROL: dict[int, int] = {
    socket.AF_INET: socket.CMSG_SPACE(12) + socket.CMSG_SPACE(16),
    socket.AF_INET6: socket.CMSG_SPACE(20) + socket.CMSG_SPACE(28),
}
#: And of the traffic class, where that is told: one byte, or an int.
_CLASS_CONTROL: dict[int, int] = {
    socket.AF_INET: socket.CMSG_SPACE(1),
    socket.AF_INET6: socket.CMSG_SPACE(4),
}

#: A socket filter (struct sock_fprog of <linux/filter.h>) that lets nothing in: raw sockets are
#: given a copy of whatever is diverted from the address that they have.
_RETURN_0 = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0), 8)  # BPF_RET | BPF_K
_NOTHING = struct.pack("HP", 1, ctypes.addressof(_RETURN_0))


class Ends(NamedTuple):
    """Of a diverted datagram: who sent it, where to, and how it came.

    ``interface``: its index, 0 for none. ``dscp``: None where the listener was not told to ask.
    """

    source: Endpoint
    destination: Endpoint
    interface: int
    dscp: int | None


class ErrorReport(NamedTuple):
    """An ICMP error about a datagram that a socket sent to ``remote``; ``mtu`` of "too big".

    ``host`` is who says so; empty where that is not told.
    """

    remote: Endpoint
    family: int
    kind: int
    code: int
    mtu: int
    host: str = ""


def open_udp_listener(host: str, port: int, *, shared: bool = True) -> SocketType:
    """A non-blocking, transparent UDP socket that diverted datagrams are given to.

    Each datagram comes with where it was going and where it arrived (``read_ends``), several
    of one flow at once where the kernel joined them (UDP_GRO). ``shared`` with the other
    workers: the kernel chooses among them by the datagram's source and the listener's own
    address (nf_tproxy_get_sock_v4() looks up without a packet, so by hash alone), hence all
    that a client's socket sends, wherever to, reaches the same worker. Raises
    ``CapabilityError`` where the port is taken or the privilege is missing.
    """
    family = family_of(host)
    with new_listener(socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, host, port) as sock:
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVORIGDSTADDR, 1)
        _set_queues(sock, LISTENER_QUEUE)
        set_transparent(sock, family)
        sock.bind((host, port))
    return sock


def tell_dscp(sock: SocketType, *, told: bool) -> int:
    """Have each datagram that a listener takes tell its DSCP, or not.

    How many bytes of ancillary data come with each from now on, whenever it arrived.
    """
    family = sock.family
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVTCLASS, told)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, told)
    return _LISTENER_CONTROL[family] + (_CLASS_CONTROL[family] if told else 0)


def read_ends(ends: bytes) -> Ends | None:
    """What ``Batch.ends`` of such a listener says; None where the destination is missing."""
    source, control = split_ends(ends)
    destination: Endpoint | None = None
    interface, dscp = 0, None
    for level, kind, data in control_messages(control):
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            (interface,) = struct.unpack_from("i", data)
        elif level == socket.IPPROTO_IPV6 and kind == IPV6_PKTINFO:
            (interface,) = struct.unpack_from("i", data, 16)
        elif (level, kind) in (
            (socket.IPPROTO_IP, IP_ORIGDSTADDR),
            (socket.IPPROTO_IPV6, IPV6_ORIGDSTADDR),
        ):
            destination = endpoint_of(data)
        elif (level, kind) in ((socket.IPPROTO_IP, IP_TOS), (socket.IPPROTO_IPV6, IPV6_TCLASS)):
            dscp = data[_LOWEST] >> 2  # RFC 2474 section 3; ECN has the lower two bits
    if destination is None:
        return None
    return Ends(endpoint_of(source), destination, interface, dscp)


#: As ``Batch.ends``: the source in 32 bytes, and a control message with the destination.
_ENDS_V4 = struct.Struct("@H2s4s24xNiiH2s4s8x")
_ENDS_V6 = struct.Struct("@H2s4x16s4x4xNiiH2s4x16s4x4x")


#: Behind these, where the DSCP is told.
_ENDS_CLASS = struct.Struct("@NiiB")
#: Which byte of an int has the lowest bits.
_LOWEST = 0 if ORDER == "little" else -1


def ends_of(
    source: bytes,
    source_port: int,
    destination: bytes,
    destination_port: int,
    dscp: int | None = None,
) -> bytes:
    """What ``Batch.ends`` would be of a datagram between these; of no interface."""
    if dscp is not None:
        ends = ends_of(source, source_port, destination, destination_port)
        return ends + _ENDS_CLASS.pack(socket.CMSG_LEN(1), socket.IPPROTO_IP, IP_TOS, dscp << 2)
    ours, theirs = source_port.to_bytes(2, "big"), destination_port.to_bytes(2, "big")
    if len(source) == 4:
        four = int(socket.AF_INET)
        return _ENDS_V4.pack(
            four, ours, source,
            socket.CMSG_LEN(16), socket.IPPROTO_IP, IP_ORIGDSTADDR, four, theirs, destination,
        )  # fmt: skip
    six = int(socket.AF_INET6)
    return _ENDS_V6.pack(
        six, ours, source,
        socket.CMSG_LEN(28), socket.IPPROTO_IPV6, IPV6_ORIGDSTADDR, six, theirs, destination,
    )  # fmt: skip


class UdpSockets:
    """Opens what leaves this machine; each socket is marked by the factory."""

    def __init__(self, factory: SocketFactory) -> None:
        self._factory = factory

    def open(
        self, family: int, options: SocketOptions, remote: Endpoint | None = None
    ) -> SocketType:
        """A non-blocking UDP socket with a port of its own; connected to ``remote``, if given.

        ICMP errors are told by its error queue (``read_errors``). Raises ``OSError`` as
        socket(2), bind(2) and connect(2) do.
        """
        sock = self._factory.open(family, socket.SOCK_DGRAM, options)
        try:
            _set_queues(sock, QUEUE)
            if remote is not None:
                sock.connect(remote)
            else:
                if not options.sources:
                    sock.bind(("", 0))
                ask_for_errors(sock)
            self._factory.note(sock, remote)
        except BaseException:
            sock.close()
            raise
        return sock

    def open_reply(self, remote: Endpoint) -> SocketType:
        """A socket that sends as ``remote``, an address of another machine.

        It is never read: what is sent to that address is diverted to the listener. Where a
        program of this machine has the port on every address, it is a raw one (``is_raw``),
        which has no port: UDP headers are to be sent as well. Raises ``OSError`` as bind(2)
        does.
        """
        try:
            return self._open_as(remote, socket.SOCK_DGRAM)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        return self._open_as(remote._replace(port=0), socket.SOCK_RAW, socket.IPPROTO_UDP)

    def open_icmp(self, source: str) -> SocketType:
        """A raw socket that sends ICMP as ``source``, an address of another machine.

        To be closed at once. Raises ``OSError`` without CAP_NET_RAW.
        """
        six = family_of(source) == socket.AF_INET6
        protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
        return self._open_as(Endpoint(source, 0), socket.SOCK_RAW, protocol, brief=True)

    def _open_as(
        self, source: Endpoint, kind: int, protocol: int = 0, *, brief: bool = False
    ) -> SocketType:
        """A socket for sending alone, bound to an address of another machine."""
        family = family_of(source.host)
        sock = self._factory.open(family, kind, SocketOptions(), protocol, brief=brief)
        try:
            set_transparent(sock, family)
            if family == socket.AF_INET:
                # Routers may fragment it. Whom we speak as cannot be told that a path takes less,
                # and what the kernel is told it does not note for an address that is not ours
                # (``__ipv4_sk_update_pmtu`` of net/ipv4/route.c); that of IPv6 does.
                sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
            if kind == socket.SOCK_RAW:
                sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, _NOTHING)
            else:
                # Each worker may have one for the same address.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _set_queue(sock, SO_SNDBUFFORCE, socket.SO_SNDBUF, QUEUE)
            sock.bind(source)
        except BaseException:
            sock.close()
            raise
        return sock


def is_raw(sock: SocketType) -> bool:
    """Whether what it sends has its UDP header in front."""
    return sock.type == socket.SOCK_RAW


def read_errors(sock: SocketType) -> Iterator[ErrorReport]:
    """Take the ICMP errors that wait in the error queue (ip(7), ``IP_RECVERR``)."""
    while True:
        try:
            _, control, _, remote = sock.recvmsg(0, 512, socket.MSG_ERRQUEUE)
        except OSError:  # none waits, or one whose address cannot be told
            return
        if remote:
            for error in told(control):
                yield ErrorReport(Endpoint(*remote[:2]), *error)


def _set_queues(sock: SocketType, size: int) -> None:
    _set_queue(sock, SO_RCVBUFFORCE, socket.SO_RCVBUF, size)
    _set_queue(sock, SO_SNDBUFFORCE, socket.SO_SNDBUF, size)
    with suppress(OSError):  # before Linux 5.0: each datagram comes alone
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)


def _set_queue(sock: SocketType, forced: int, bounded: int, size: int) -> None:
    """Past the system's limit where that is allowed, else up to it."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, bounded, size)
