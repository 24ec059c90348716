"""What takes the default route away from a gateway, and who is caught by it.

A TUN that nobody reads stands for any VPN: a packet that comes out of it went astray, and one
that a gateway would read there is one that it would send again, for ever.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from typing import Final, Literal

from gateway.kernel.netns import entered
from gateway.lab.machine import Machine
from gateway.marks import TABLE_CAPTURE, Marks
from gateway.plan.addresses import EVERYTHING, Family
from gateway.plan.capture import Capture, capture_routes, capture_rules
from gateway.plan.render_ip import route_line, rule_line

# <linux/if_tun.h>
_TUNSETIFF: Final = 0x4004_54CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_SYN_ALONE: Final = 0x02
_ECHO: Final = b"\x08"  # RFC 792
_ECHO6: Final = b"\x80"  # RFC 4443 section 4.1
_PACKET: Final = 2048
#: What marks a rule or route as ours, and the table of another program's.
_TAG: Final = re.compile(r" proto(col)? 0x67")
_TABLE: Final = 200


class Tun:
    """A TUN on a machine; it goes when it is closed."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.name = name
        with entered(machine.namespace):
            self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            request = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(self._fd, _TUNSETIFF, request)
        machine.run(["ip", "link", "set", name, "up"])

    def caught(self) -> set[str]:
        """Where the flows go of which a first packet came out since the last call."""
        found = set()
        with suppress(BlockingIOError):
            while True:
                packet = os.read(self._fd, _PACKET)
                destination = _opens_to(packet)
                if destination is not None:
                    found.add(destination)
        return found

    def is_readable(self) -> bool:
        """Whether a packet waits to be read."""
        return bool(select.select([self._fd], [], [], 0)[0])

    def write_back(self, host: str) -> int:
        """Write what came out back as it is, if it goes to ``host``; how many packets that were."""
        count = 0
        wanted = ip_address(host).packed
        with suppress(BlockingIOError):
            while True:
                packet = os.read(self._fd, _PACKET)
                if wanted in (packet[16:20], packet[24:40]):
                    count += 1
                    os.write(self._fd, packet)
        return count

    def close(self) -> None:
        """Remove it."""
        os.close(self._fd)


def _opens_to(packet: bytes) -> str | None:
    """The destination of a TCP SYN (RFC 9293 section 3.1), a datagram or an echo request.

    Without IP options or extensions.
    """
    version = packet[0] >> 4
    at, protocol, address = (
        (20, packet[9], packet[16:20]) if version == 4 else (40, packet[6], packet[24:40])
    )
    begins = {
        socket.IPPROTO_TCP: packet[at + 13 : at + 14] and packet[at + 13] & 0x3F == _SYN_ALONE,
        socket.IPPROTO_UDP: True,
        socket.IPPROTO_ICMP: packet[at : at + 1] == _ECHO,
        socket.IPPROTO_ICMPV6: packet[at : at + 1] == _ECHO6,
    }
    return str(ip_address(address)) if begins.get(protocol) else None


@contextmanager
def captured(router: Machine, kind: Literal["suppress", "split_default"]) -> Iterator[Tun]:
    """A TUN that has everything, made by another program: no tag and no table of ours."""
    tun = Tun(router, "vpn0")
    lines = []
    everything = Capture(tun.name, tuple(EVERYTHING.values()), kind, closed=False)
    lines += [route_line(route, "add") for route in capture_routes(everything, Family)]
    lines += [rule_line(rule, "add") for rule in capture_rules(everything, Family, Marks())]
    for line in lines:
        router.run(_TAG.sub("", line).replace(f" {TABLE_CAPTURE}", f" {_TABLE}").split())
    try:
        yield tun
    finally:
        tun.close()
