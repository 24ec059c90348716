"""Whose a flow of this machine is: the user and the control group of its socket.

sock_diag(7) tells both; no interface tells a socket's group id, which only the kernel's own
matches see.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from gateway.flow import Endpoint, Owner, Protocol
from gateway.kernel.accounts import CGROUP_ROOT
from gateway.kernel.netlink import attributes, messages, netlink_request
from gateway.kernel.sockets import family_of

#: Seconds between two walks through the cgroups in search of one that is not known.
WALK_EVERY_S: Final = 1.0

#: <linux/netlink.h>, <linux/sock_diag.h> and <linux/inet_diag.h>.
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NO_COOKIE: Final = b"\xff" * 8
_ALL_STATES: Final = 0xFFFF_FFFF
_UID_AT: Final = 4 + 48 + 12
_MESSAGE_SIZE: Final = 72
_INET_DIAG_CGROUP_ID: Final = 21

_PROTOCOLS = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP}


class Owners:
    """Asks the kernel for each flow; remembers where cgroups are."""

    def __init__(
        self, root: Path = CGROUP_ROOT, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._root = root
        self._clock = clock
        self._paths: dict[int, str] = {}
        self._walk_at = 0.0

    def owner(self, protocol: Protocol, source: Endpoint, destination: Endpoint) -> Owner:
        """Whose the socket is that a flow of this machine comes from."""
        if protocol not in _PROTOCOLS:
            return Owner()
        asked = _question(protocol, source, destination)
        answer = netlink_request(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, asked)
        uid, cgroup = read_owner(answer)
        return Owner(uid, None, None if cgroup is None else self._path(cgroup))

    def _path(self, number: int) -> str | None:
        """The path of a cgroup: its number is that of its directory (kernfs)."""
        now = self._clock()
        if number not in self._paths and now >= self._walk_at:
            self._walk_at = now + WALK_EVERY_S
            self._paths = dict(_numbered(self._root))
        return self._paths.get(number)


def _numbered(root: Path) -> Iterator[tuple[int, str]]:
    """Every directory by its inode; one that goes away meanwhile is left out."""
    for folder, _, _ in os.walk(root):
        with suppress(OSError):
            yield Path(folder).stat().st_ino, os.path.relpath(folder, root)


def _question(protocol: Protocol, source: Endpoint, destination: Endpoint) -> bytes:
    family = family_of(source.host)
    ends = [socket.inet_pton(family, end.host).ljust(16, b"\0") for end in (source, destination)]
    body = struct.pack("=BBBBI", family, _PROTOCOLS[protocol], 0, 0, _ALL_STATES)
    body += struct.pack(">HH", source.port, destination.port) + b"".join(ends)
    return body + struct.pack("=I", 0) + _NO_COOKIE


def read_owner(answer: bytes) -> tuple[int | None, int | None]:
    """User id and cgroup number in an answer; None for what it does not have."""
    for kind, body in messages(answer):
        if kind == _SOCK_DIAG_BY_FAMILY and len(body) >= _MESSAGE_SIZE:
            (uid,) = struct.unpack_from("=I", body, _UID_AT)
            found = dict(attributes(body, _MESSAGE_SIZE)).get(_INET_DIAG_CGROUP_ID, b"")
            return uid, struct.unpack("=Q", found)[0] if len(found) == 8 else None
    return None, None
