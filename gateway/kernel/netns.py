"""Other network namespaces: a socket stays in the one that it was made in (setns(2)).

The kernel keeps the namespace of each thread, and makes sockets in that of the calling one.
Nothing else runs in the thread between entering and leaving, so the event loop's own thread
can do it; two system calls cost less than asking another thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

#: Where ip-netns(8) names them.
DIRECTORY: Final = Path("/run/netns")
_CLONE_NEWNET: Final = 0x4000_0000
_HOME: Final = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def entered(name: str) -> Iterator[None]:
    """Make sockets in the namespace ``name``; then back home.

    Needs CAP_SYS_ADMIN. Raises ``OSError``: ``ENOENT`` where there is none of this name.
    """
    home = os.open(_HOME, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter_named(name)
        try:
            yield
        finally:
            _enter(home)
    finally:
        os.close(home)


def _enter_named(name: str) -> None:
    try:
        there = os.open(DIRECTORY / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(there)
        finally:
            os.close(there)
    except OSError as error:
        # A file that ip-netns(8) left behind, after a reboot, is no namespace (EINVAL).
        code = errno.ENOENT if error.errno == errno.EINVAL else error.errno
        raise OSError(code, f"network namespace {name}: {os.strerror(code or 0)}") from error


def _enter(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
