"""ICMP errors as sockets are told them: the error queue of ip(7), ``IP_RECVERR``."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

IP_RECVERR: Final = 11
IPV6_RECVERR: Final = 25
_ORIGIN_ICMP: Final = 2
_ORIGIN_ICMP6: Final = 3

#: struct sock_extended_err of <linux/errqueue.h>; the offender's address follows.
_EXTENDED_ERROR: Final = struct.Struct("=IBBBBII")
#: Where addresses stand in sockaddr_in and sockaddr_in6.
_V4: Final = slice(_EXTENDED_ERROR.size + 4, _EXTENDED_ERROR.size + 8)
_V6: Final = slice(_EXTENDED_ERROR.size + 8, _EXTENDED_ERROR.size + 24)


class Told(NamedTuple):
    """An ICMP error: its family (4 or 6), type and code, and the MTU of "too big" in ``info``.

    ``host`` is who tells it; empty where the kernel does not say.
    """

    family: int
    kind: int
    code: int
    info: int
    host: str


def ask_for_errors(sock: socket.SocketType) -> None:
    """Have the socket's queue hold the errors. Raises ``OSError``."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)


def told(control: Iterable[tuple[int, int, bytes]]) -> Iterator[Told]:
    """What the network's errors among a message's ancillary data say."""
    for _, kind, data in control:
        if kind not in (IP_RECVERR, IPV6_RECVERR) or len(data) < _EXTENDED_ERROR.size:
            continue
        _, origin, icmp_type, icmp_code, _, info, _ = _EXTENDED_ERROR.unpack_from(data)
        if origin == _ORIGIN_ICMP:
            yield Told(4, icmp_type, icmp_code, info, _host(socket.AF_INET, data[_V4]))
        elif origin == _ORIGIN_ICMP6:
            yield Told(6, icmp_type, icmp_code, info, _host(socket.AF_INET6, data[_V6]))


def _host(family: int, packed: bytes) -> str:
    """Empty where it is missing, or unspecified as the kernel leaves it."""
    if len(packed) not in (4, 16) or not any(packed):
        return ""
    return socket.inet_ntop(family, packed)
