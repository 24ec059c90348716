"""Where a host is: its MAC address on one of our links, and which link it is behind.

A host that has connected through us is in the kernel's neighbour table: it needed the address
to answer. With the first datagram of a host it may not be there yet. One behind another router
never is, and has no MAC here.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Final

from gateway.kernel.netlink import attribute, attributes, messages, netlink_request
from gateway.kernel.sockets import family_of

#: Seconds that an answer is taken for true: addresses move from device to device, but slowly.
FRESH_S: Final = 10.0
#: Answers that are kept.
KEPT: Final = 4096

#: <linux/rtnetlink.h> and <linux/neighbour.h>.
_NEIGHBOUR = struct.Struct("=BBHiHBB")
_ROUTE = struct.Struct("=BBBBBBBBI")
_RTM_NEWNEIGH: Final = 28
_RTM_GETNEIGH: Final = 30
_RTM_NEWROUTE: Final = 24
_RTM_GETROUTE: Final = 26
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2


class Neighbours:
    """Asks the kernel, and remembers for a while."""

    def __init__(
        self,
        ask: Callable[[str, int], str | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask or ask_kernel
        self._clock = clock
        self._known: dict[tuple[str, int], tuple[str, float]] = {}

    def mac(self, host: str, interface: int) -> str | None:
        """MAC address (lower case) of a host on the interface with this index, if it has one."""
        now = self._clock()
        known = self._known.get((host, interface))
        if known is not None and now < known[1]:
            return known[0]
        found = self._ask(host, interface)
        if found is not None:  # else it may be there with the next flow: nobody has answered yet
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[host, interface] = (found, now + FRESH_S)
        return found


def ask_kernel(host: str, interface: int) -> str | None:
    """One entry of the neighbour table (rtnetlink(7), ``RTM_GETNEIGH`` for one address)."""
    address = socket.inet_pton(family_of(host), host)
    body = _NEIGHBOUR.pack(family_of(host), 0, 0, interface, 0, 0, 0)
    body += attribute(_NDA_DST, address)
    return hardware_address(netlink_request(socket.NETLINK_ROUTE, _RTM_GETNEIGH, body))


def link_towards(host: str) -> int:
    """Index of the interface that packets to a host leave by (``RTM_GETROUTE``); 0 for none."""
    family, address = family_of(host), socket.inet_pton(family_of(host), host)
    body = _ROUTE.pack(family, 8 * len(address), 0, 0, 0, 0, 0, 0, 0)
    body += attribute(_RTA_DST, address)
    return outgoing_link(netlink_request(socket.NETLINK_ROUTE, _RTM_GETROUTE, body))


def outgoing_link(answer: bytes) -> int:
    """Index of the interface in a route message; 0 in any other message, or where it has none."""
    for kind, body in messages(answer):
        if kind == _RTM_NEWROUTE:
            index = dict(attributes(body, _ROUTE.size)).get(_RTA_OIF, b"")
            return int.from_bytes(index, sys.byteorder) if len(index) == 4 else 0
    return 0


def hardware_address(answer: bytes) -> str | None:
    """The MAC address in a neighbour message; None in any other message (an error), or none."""
    for kind, body in messages(answer):
        if kind == _RTM_NEWNEIGH:
            address = dict(attributes(body, _NEIGHBOUR.size)).get(_NDA_LLADDR, b"")
            return address.hex(":") if len(address) == 6 else None
    return None
