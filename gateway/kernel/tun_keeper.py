"""Who makes the TUN device, gives it its addresses, and keeps it.

The device lives as long as somebody has it open: it is not persistent, so that nothing is left
of it after a crash. Who made it keeps it by a queue that is detached: no packet waits there,
and those who carry packets attach queues of their own, which takes no privilege then.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from dataclasses import replace
from time import monotonic, sleep
from typing import Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from gateway.errors import CapabilityError, GatewayError
from gateway.kernel import sysctl
from gateway.kernel.tun import REQUEST, TunSettings, open_device, refused, set_offloads

_TUNSETOWNER: Final = 0x4004_54CC
_TUNSETQUEUE: Final = 0x4004_54D9
_IFF_DETACH_QUEUE: Final = 0x0400
#: IFA_F_NODAD of <linux/if_addr.h>: nobody else is on this link.
_NODAD: Final = 0x02

#: How long a device of the same name is waited for to go (seconds).
PATIENCE_S: Final = 2.0


class TunKeeper:
    """Makes the device, and keeps it while others attach to it and leave it.

    Its methods block: call them from a thread without an event loop.
    """

    def __init__(self) -> None:
        self._settings: TunSettings | None = None
        self._fd = -1

    def keep(self, settings: TunSettings) -> None:
        """Have a device like that; made again where somebody has removed it.

        Raises ``CapabilityError`` where the kernel refuses, ``GatewayError`` where there is
        another one, which flows are in.
        """
        if self._settings is not None and not _exists(self._settings.name):
            self.close()
        if self._settings is None:
            self._make(settings)
        elif replace(settings, mtu=self._settings.mtu) != self._settings:
            raise GatewayError(
                "tun.name, tun.ipv4 and tun.ipv6 cannot change while the device is in use",
                "restart the gateway",
            )
        elif settings != self._settings:
            _configure(settings)
            self._settings = settings

    def close(self) -> None:
        """Let go of the device: it goes with the last that has it open."""
        if self._fd >= 0:
            os.close(self._fd)
        self._settings, self._fd = None, -1

    def _make(self, settings: TunSettings) -> None:
        # Of a gateway that was killed, the workers may not have ended yet.
        patience = monotonic() + PATIENCE_S
        while _exists(settings.name):
            if monotonic() > patience:
                raise refused(settings.name, OSError(errno.EBUSY, "it exists"))
            sleep(PATIENCE_S / 20)
        fd = open_device(settings.name)
        try:
            set_offloads(fd)
            # Whoever has this user's id may attach to it, without CAP_NET_ADMIN.
            fcntl.ioctl(fd, _TUNSETOWNER, os.geteuid())
            fcntl.ioctl(fd, _TUNSETQUEUE, REQUEST.pack(b"", _IFF_DETACH_QUEUE))
            _configure(settings)
        except OSError as error:
            os.close(fd)
            raise refused(settings.name, error) from error
        except BaseException:
            os.close(fd)
            raise
        self._settings, self._fd = settings, fd


def _exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _configure(settings: TunSettings) -> None:
    """Give the device its addresses, and take it up. Raises ``CapabilityError``."""
    name = settings.name
    # Without this, the kernel gives it a link-local address and looks for routers by it.
    _set("ipv6", name, "addr_gen_mode", "1")
    _set("ipv6", name, "accept_ra", "0")
    _set("ipv4", name, "send_redirects", "0")
    # What comes out of the device has addresses that are routed elsewhere. The greater of this
    # and "all" counts, and 2 is laxer than 1 (Documentation/networking/ip-sysctl.rst).
    strict = sysctl.read("net.ipv4.conf.all.rp_filter") not in (None, "0")
    _set("ipv4", name, "rp_filter", "2" if strict else "0")
    try:
        with IPRoute() as netlink:
            index = netlink.link_lookup(ifname=name)[0]
            netlink.link("set", index=index, mtu=settings.mtu, state="up")
            for interface in (settings.ipv4, settings.ipv6):
                if interface.version == 4 or _has_ipv6(name):
                    netlink.addr(
                        "replace",
                        index=index,
                        address=str(interface.ip),
                        prefixlen=interface.network.prefixlen,
                        **({"flags": _NODAD} if interface.version == 6 else {}),
                    )
    except (NetlinkError, IndexError) as error:
        raise CapabilityError(
            f"cannot configure the TUN device {name}: {error.args[-1]}",
            "choose other addresses (`tun.ipv4`, `tun.ipv6`): `ip address` lists those in use",
        ) from error


def _has_ipv6(name: str) -> bool:
    return sysctl.read(_setting("ipv6", name, "disable_ipv6")) == "0"


def _set(family: str, name: str, key: str, value: str) -> None:
    setting = _setting(family, name, key)
    if sysctl.read(setting) is not None:
        sysctl.write(setting, value)


def _setting(family: str, name: str, key: str) -> str:
    return f"net.{family}.conf.{name.replace('.', '/')}.{key}"
