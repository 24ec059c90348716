"""The TCP sockets of this machine that listen: what /proc/net/tcp says (proc_net(5))."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final, NamedTuple

#: Of the network namespace of the calling thread.
_TABLES: Final = (Path("/proc/thread-self/net/tcp"), Path("/proc/thread-self/net/tcp6"))
_LISTEN: Final = "0A"  # TCP_LISTEN of <net/tcp_states.h>


class ListeningSocket(NamedTuple):
    """Where it listens, the user who opened it, and the inode by which its processes hold it."""

    address: str
    port: int
    uid: int
    inode: int


def listening() -> Iterator[ListeningSocket]:
    """All of them, as far as they can be read."""
    for table in _TABLES:
        try:
            text = table.read_text()
        except OSError:
            continue  # a kernel without IPv6
        yield from parse(text)


def parse(table: str) -> Iterator[ListeningSocket]:
    """Those in the text of such a file, whose first line is a head."""
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) > 9 and words[3] == _LISTEN:
            address, _, port = words[1].partition(":")
            yield ListeningSocket(_address(address), int(port, 16), int(words[7]), int(words[9]))


def _address(text: str) -> str:
    """Words of 32 bits in this machine's byte order, as hexadecimal digits."""
    starts = range(0, len(text), 8)
    raw = b"".join(int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in starts)
    return str(IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw))
