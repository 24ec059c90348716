"""Netlink without a library (netlink(7)): one question, and what is told of the firewall."""

from __future__ import annotations

import socket

#: <linux/netlink.h>, <linux/socket.h>, <linux/netfilter/nfnetlink.h>.
NETLINK_NETFILTER = 12
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NFNLGRP_NFTABLES = 7


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
