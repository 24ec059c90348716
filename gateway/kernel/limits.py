"""How many descriptors this process may have: two for each flow, more while bytes flow.

Some are kept back from flows: whoever floods the gateway must not keep it from looking after the
kernel's state, nor from answering. nft's library even ends a process to which it cannot open a
socket (``netlink_init_error`` of its src/mnl.c).
"""

from __future__ import annotations

import errno
import os
import resource
from typing import Final

#: Ample for every flow that a home has; above the hard limit of most service managers' default.
WANTED: Final = 262_144
#: Descriptors that are not for flows, and at most this part of all.
KEPT_BACK: Final = 64
_PART: Final = 4


class _Flows:
    """Of this process' descriptors, flows may have those below ``end``."""

    __slots__ = ("end",)

    def __init__(self) -> None:
        self.measure()

    def measure(self) -> None:
        """Look at the limit, which is on a descriptor's number (getrlimit(2))."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.end = soft - min(KEPT_BACK, soft // _PART)


_FLOWS: Final = _Flows()


def is_kept_back(fd: int) -> bool:
    """Whether a descriptor that was just opened is not for a flow to have."""
    return fd >= _FLOWS.end


def require_for_flow(fd: int) -> None:
    """Raise ``OSError`` (EMFILE) where the descriptor is kept back; it stays open."""
    if is_kept_back(fd):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files as far as we may, to ``WANTED``; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limits in ((WANTED, max(WANTED, hard)), (hard, hard)):
        if soft >= min(limits[0], WANTED):
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        except (OSError, ValueError):
            continue  # above the hard limit without CAP_SYS_RESOURCE, or above fs.nr_open
        soft = limits[0]
        break
    _FLOWS.measure()
    return soft
