"""What this process may do: its capabilities (capabilities(7)), and how it gives them up."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import Final

from gateway.errors import CapabilityError
from gateway.kernel.sockets import may_mark

#: <linux/prctl.h>.
_CAPBSET_DROP: Final = 24
_NO_NEW_PRIVS: Final = 38
_AMBIENT, _AMBIENT_CLEAR_ALL = 47, 4
#: _LINUX_CAPABILITY_VERSION_3 of <linux/capability.h>: 64 bits of each set, in two halves.
_VERSION: Final = 0x20080522
_HALF: Final = 0xFFFF_FFFF

_STATUS: Final = Path("/proc/thread-self/status")

_libc = ctypes.CDLL(None, use_errno=True)


class Capability(IntEnum):
    """Numbers of <linux/capability.h>."""

    NET_BIND_SERVICE = 10
    NET_ADMIN = 12
    NET_RAW = 13
    SYS_ADMIN = 21


def has(capability: Capability) -> bool:
    """Whether this thread has the capability now."""
    return capability in effective()


def effective() -> frozenset[Capability]:
    """Of those that matter here, the ones that this thread has now."""
    bits = read_set(_STATUS.read_text(), "CapEff")
    return frozenset(each for each in Capability if bits >> each & 1)


def read_set(status: str, name: str) -> int:
    """A set of capabilities as bits, from the text of /proc/PID/status (proc_pid_status(5))."""
    found = re.search(rf"^{name}:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return int(found[1], 16) if found else 0


def require_net_admin() -> None:
    """Raise ``CapabilityError`` where the kernel would refuse every change."""
    if not has(Capability.NET_ADMIN):
        raise CapabilityError(
            "only root may look at and change the kernel's firewall and routing",
            hint="use sudo, or give the service CAP_NET_ADMIN and CAP_NET_RAW",
        )


def keep_only(wanted: Iterable[Capability]) -> None:
    """Give up all other capabilities, for good, for this thread and whatever it starts.

    CAP_NET_ADMIN is kept as well where marks take it: before Linux 5.17 CAP_NET_RAW was not
    enough to set ``SO_MARK`` (socket(7)). What this process never had it does not get. Raises
    ``CapabilityError`` where the kernel refuses.
    """
    permitted = read_set(_STATUS.read_text(), "CapPrm")
    kept = _bits(wanted) & permitted
    _set(kept, permitted)
    if not may_mark():
        kept |= _bits([Capability.NET_ADMIN]) & permitted
    _set(permitted, permitted)
    _drop_bounding(kept)
    _check(_libc.prctl(_AMBIENT, _AMBIENT_CLEAR_ALL, 0, 0, 0))
    _check(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    _set(kept, kept)


def _bits(capabilities: Iterable[Capability]) -> int:
    return sum(1 << number for number in set(capabilities))


def _set(in_force: int, permitted: int) -> None:
    sets = (in_force, permitted, 0)
    data = struct.pack("6I", *(bits & _HALF for bits in sets), *(bits >> 32 for bits in sets))
    _check(_libc.capset(struct.pack("Ii", _VERSION, 0), data))


def _drop_bounding(kept: int) -> None:
    """It bounds what a program that is executed may get; to shrink it takes CAP_SETPCAP."""
    for number in range(64):
        if not kept >> number & 1 and _libc.prctl(_CAPBSET_DROP, number, 0, 0, 0):
            return  # EINVAL: beyond the last one; EPERM: no program gets what we do not have


def _check(code: int) -> None:
    if code:
        number = ctypes.get_errno()
        raise CapabilityError(
            f"cannot give up privileges: {os.strerror(number)} ({errno.errorcode.get(number)})"
        )
