"""Who runs what on this machine: users, control groups, and the owner of a listening port."""

from __future__ import annotations

import grp
import pwd
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

#: The one place where nft looks for the path of a control group (cgroups(7), nft(8) ``socket``).
CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
_ANY: Final = ("0.0.0.0", "::")  # noqa: S104 - read, not bound
_LISTEN: Final = "0A"  # TCP_LISTEN of <net/tcp_states.h>


def users(names: Iterable[str]) -> dict[str, int]:
    """The numbers of those that exist. Blocks: a directory service may be asked."""
    found = {}
    for name in names:
        try:
            found[name] = pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    return found


def groups(names: Iterable[str]) -> dict[str, int]:
    """The same of groups."""
    found = {}
    for name in names:
        try:
            found[name] = grp.getgrnam(name).gr_gid
        except KeyError:
            continue
    return found


def control_groups(paths: Iterable[str]) -> dict[str, int]:
    """The numbers (inodes) of those that exist; none where there is no cgroup v2 at the root."""
    if not (CGROUP_ROOT / "cgroup.procs").exists():
        return {}
    found = {}
    for path in paths:
        try:
            found[path] = (CGROUP_ROOT / path).stat().st_ino
        except OSError:
            continue
    return found


def listener_users(host: str, port: int) -> frozenset[int]:
    """Who listens on a TCP port of ``host`` (an own address) or of any address, by number.

    Of the calling thread's network namespace (proc_net(5), ``/proc/net/tcp``).
    """
    return frozenset(
        uid
        for address, listening, uid in _listeners()
        if listening == port and address in (host, *_ANY)
    )


def _listeners() -> Iterator[tuple[str, int, int]]:
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN:
                address, _, port = fields[1].partition(":")
                yield _address(address), int(port, 16), int(fields[7])


def _address(text: str) -> str:
    """Words of four bytes in this machine's byte order, as hexadecimal digits."""
    words = bytes.fromhex(text)
    swapped = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
    if socket.ntohl(1) == 1:  # big-endian
        swapped = words
    return socket.inet_ntop(socket.AF_INET if len(words) == 4 else socket.AF_INET6, swapped)
