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

#: struct nlmsghdr, and what ends a dump.
HEADER = struct.Struct("=IHHII")
_ERROR, _DONE = 2, 3
_ATTRIBUTE = struct.Struct("=HH")
_ALIGN = 3
#: More than one message that the kernel sends at a time.
_BUFFER = 64 << 10


def attributes(message: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Type and value of each attribute from this offset on; stops at one that is cut off."""
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, message[at + _ATTRIBUTE.size : at + length]
        at += (length + _ALIGN) & ~_ALIGN


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, with what fills it up to the next."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) & _ALIGN)


def netlink_dump(protocol: int, message: bytes) -> Iterator[bytes]:
    """All answers to a message that asks for many, one by one.

    Raises ``OSError`` where the kernel refuses it.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        sock.send(message)
        while True:
            data, at = sock.recv(_BUFFER), 0
            while at + HEADER.size <= len(data):
                length, kind, *_ = HEADER.unpack_from(data, at)
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    code = -struct.unpack_from("=i", data, at + HEADER.size)[0]
                    raise OSError(code, os.strerror(code))
                yield data[at : at + length]
                at += max(HEADER.size, (length + _ALIGN) & ~_ALIGN)


def netlink_tell(protocol: int, messages: Iterable[bytes]) -> None:
    """Have the kernel do these, each before the next; what it cannot do it leaves out."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        for message in messages:
            sock.send(message)


def netlink_request(protocol: int, message: bytes) -> bytes:
    """The first answer to a netlink message (netlink(7)); empty where the kernel refuses it.

    The kernel answers while it takes the message, so this never waits.
    """
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        with socket.socket(socket.AF_NETLINK, kind, protocol) as sock:
            sock.send(message)
            return sock.recv(8192)
    except OSError:
        return b""


def firewall_events() -> socket.socket:
    """A non-blocking netlink socket that hears of every change of an nftables ruleset.

    (nfnetlink, group ``NFNLGRP_NFTABLES`` of <linux/netfilter/nfnetlink.h>.) Raises
    ``OSError`` where the kernel has no nftables.
    """
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    sock = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
    try:
        sock.bind((0, 0))
        sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
    except OSError:
        sock.close()
        raise
    return sock
