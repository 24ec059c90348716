"""Listening sockets on several addresses: all of them, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from socket import SocketType


def open_all(hosts: Iterable[str], opener: Callable[[str], SocketType]) -> list[SocketType]:
    """What ``opener`` makes of each address. Raises what it raises; none is left open then."""
    socks: list[SocketType] = []
    with ExitStack() as unless_all:
        for host in hosts:
            socks.append(opener(host))
            unless_all.callback(socks[-1].close)
        unless_all.pop_all()
    return socks
