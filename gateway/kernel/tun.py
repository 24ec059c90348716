"""The TUN device: made, addressed, and read and written by packets (tun(4) of the kernel's docs).

Source: Documentation/networking/tuntap.rst, <linux/if_tun.h>, drivers/net/tun.c. The device
lives as long as somebody has it open: it is not persistent, so that nothing is left of it
after a crash. Who made it (``gateway.kernel.tun_keeper``) keeps its queues, too, and gives
copies to those who read them: one that ends leaves its queue in its place.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from typing import Final

from gateway.errors import CapabilityError

_DEVICE: Final = "/dev/net/tun"

TUNSETIFF: Final = 0x4004_54CA
TUNSETOFFLOAD: Final = 0x4004_54D0

IFF_TUN: Final = 0x0001
IFF_MULTI_QUEUE: Final = 0x0100
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
_FLAGS: Final = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE

#: TUN_F_*: checksums, TCP segmentation of both families, UDP segmentation. Tried in this order:
#: Linux before 6.2 knows none for UDP.
CSUM, TSO4, TSO6, USO4, USO6 = 0x01, 0x02, 0x04, 0x20, 0x40
_OFFLOADS: Final = (CSUM | TSO4 | TSO6 | USO4 | USO6, CSUM | TSO4 | TSO6, 0)

#: A super-packet and its vnet header.
FRAME_BYTES: Final = 65535 + 40 + 10

_REQUEST: Final = struct.Struct("16sH22x")


@dataclass(frozen=True, slots=True)
class TunSettings:
    """A device: ``mtu`` in bytes; an address of each family, whose next one is ours, too.

    That of IPv6 is not given where this machine has none.
    """

    name: str
    mtu: int
    ipv4: IPv4Interface
    ipv6: IPv6Interface


class TunDevice:
    """One queue of a device: each ``read`` and ``write`` of it is a packet (a *frame*).

    A frame begins with the vnet header (``gateway.wire.ip.Vnet``). ``offloads``: what the
    kernel may leave undone in what it hands over, TUN_F_*.
    """

    def __init__(self, fd: int) -> None:
        """``fd``: a queue of ``TunKeeper``'s, ours from here on."""
        self._fd = fd
        self.offloads = _set_offloads(fd)

    def fileno(self) -> int:
        """The descriptor, not blocking; -1 once it is closed."""
        return self._fd

    def close(self) -> None:
        """Leave the queue."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_queue(name: str) -> int:
    """A queue of the device, which is made where it is not there. Raises ``CapabilityError``."""
    try:
        fd = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise refused(name, error) from error
    try:
        fcntl.ioctl(fd, TUNSETIFF, _REQUEST.pack(name.encode(), _FLAGS))
        _set_offloads(fd)
    except OSError as error:
        os.close(fd)
        raise refused(name, error) from error
    return fd


def _set_offloads(fd: int) -> int:
    """Have the kernel leave undone what it can, of these sets the first that it takes."""
    for offloads in _OFFLOADS:
        try:
            fcntl.ioctl(fd, TUNSETOFFLOAD, offloads)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return offloads
    return 0


def refused(name: str, error: OSError) -> CapabilityError:
    """What the kernel refused a device for, and the cure."""
    what = f"cannot have the TUN device {name}: {error.strerror}"
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return CapabilityError(
            what, "load the module (modprobe tun), or give this container /dev/net/tun"
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        return CapabilityError(what, "run as root (CAP_NET_ADMIN)")
    if error.errno in (errno.EBUSY, errno.EINVAL):
        return CapabilityError(
            what, "another program has a device of that name: choose another `tun.name`"
        )
    return CapabilityError(what, "see `ip tuntap` and the kernel's log")
