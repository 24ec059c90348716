"""Netlink without a library (netlink(7)): questions, dumps, and what is told of the firewall."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator

#: <linux/netlink.h>, <linux/socket.h>, <linux/netfilter/nfnetlink.h>.
NETLINK_NETFILTER = 12
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NFNLGRP_NFTABLES = 7

#: struct nlmsghdr, what asks for something, for all there is of it, and what ends that.
_HEADER = struct.Struct("=IHHII")
_REQUEST, _DUMP = 0x1, 0x300
_ERROR, _DONE = 2, 3
_ATTRIBUTE = struct.Struct("=HH")
_ALIGN = 3
#: More than one message that the kernel sends at a time.
_BUFFER = 64 << 10


def request(kind: int, body: bytes, *, dump: bool = False) -> bytes:
    """A message that asks for something, or with ``dump`` for all there is of it."""
    flags = _REQUEST | _DUMP if dump else _REQUEST
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each message of a datagram; stops at one that is cut off."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += (length + _ALIGN) & ~_ALIGN


def attributes(body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Type and value of each attribute from this offset on; stops at one that is cut off."""
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, body[at + _ATTRIBUTE.size : at + length]
        at += (length + _ALIGN) & ~_ALIGN


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, with what fills it up to the next."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) & _ALIGN)


def netlink_dump(protocol: int, kind: int, body: bytes) -> Iterator[bytes]:
    """The bodies of all answers to a request for all there is of something.

    Raises ``OSError`` where the kernel refuses it.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        sock.send(request(kind, body, dump=True))
        while True:
            for answer, told in messages(sock.recv(_BUFFER)):
                if answer == _DONE:
                    return
                if answer == _ERROR:
                    code = -struct.unpack_from("=i", told)[0]
                    raise OSError(code, os.strerror(code))
                yield told


def netlink_tell(protocol: int, kind: int, bodies: Iterable[bytes]) -> None:
    """Have the kernel do these, each before the next; what it cannot do it leaves out."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        for body in bodies:
            sock.send(request(kind, body))


def netlink_request(protocol: int, kind: int, body: bytes) -> bytes:
    """The first answer to a request (``messages``); empty where the kernel refuses it.

    The kernel answers while it takes the message, so this never waits.
    """
    raw = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    try:
        with socket.socket(socket.AF_NETLINK, raw, protocol) as sock:
            sock.send(request(kind, body))
            return sock.recv(8192)
    except OSError:
        return b""


def firewall_events() -> socket.socket:
    """A non-blocking netlink socket that hears of every change of an nftables ruleset.

    (nfnetlink, group ``NFNLGRP_NFTABLES`` of <linux/netfilter/nfnetlink.h>.) Raises
    ``OSError`` where the kernel has no nftables.
    """
    raw = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    sock = socket.socket(socket.AF_NETLINK, raw, NETLINK_NETFILTER)
    try:
        sock.bind((0, 0))
        sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
    except OSError:
        sock.close()
        raise
    return sock
