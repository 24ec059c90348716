"""Makes the TUN device, gives it its addresses, and keeps it for those who read it."""

from __future__ import annotations

import errno
import logging
import os
import socket
from dataclasses import replace
from time import monotonic, sleep
from typing import Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from gateway.errors import CapabilityError, GatewayError
from gateway.kernel import sysctl
from gateway.kernel.steering import steer
from gateway.kernel.tun import TunSettings, open_queue, refused

log = logging.getLogger(__name__)

#: How long a device of the same name is waited for to go (seconds).
PATIENCE_S: Final = 2.0
#: IFA_F_NODAD of <linux/if_addr.h>: nobody else is on this link.
_NODAD: Final = 0x02


class TunKeeper:
    """Makes the device and all its queues, and keeps them while others read and leave them.

    Its methods block: call them from a thread without an event loop.
    """

    def __init__(self) -> None:
        self._settings: TunSettings | None = None
        self.queues: tuple[int, ...] = ()

    def keep(self, settings: TunSettings, queues: int) -> bool:
        """Have a device like that; made again where somebody has removed it.

        It has as many ``queues`` as are wanted, or one where the kernel cannot be told which
        packets go where. True: those are new. Raises ``CapabilityError`` where the kernel
        refuses, ``GatewayError`` where there is another device, which flows are in.
        """
        if self._settings is not None and not _exists(self._settings.name):
            self.close()
        if self._settings is None:
            self._make(settings, queues)
            return True
        if replace(settings, mtu=self._settings.mtu) != self._settings:
            raise GatewayError(
                "tun.name, tun.ipv4 and tun.ipv6 cannot change while the device is in use",
                "restart the gateway",
            )
        if settings != self._settings:
            _configure(settings)
            self._settings = settings
        return False

    def close(self) -> None:
        """Let go of the device: it goes with the last that has it open."""
        for fd in self.queues:
            os.close(fd)
        self._settings, self.queues = None, ()

    def _make(self, settings: TunSettings, queues: int) -> None:
        # Of a gateway that was killed, the workers may not have ended yet.
        patience = monotonic() + PATIENCE_S
        while _exists(settings.name):
            if monotonic() > patience:
                raise refused(settings.name, OSError(errno.EBUSY, "it exists"))
            sleep(PATIENCE_S / 20)
        self.queues = (open_queue(settings.name),)
        try:
            more = queues - 1 if queues > 1 and _steered(self.queues[0], settings, queues) else 0
            for _ in range(more):
                self.queues += (open_queue(settings.name),)  # each ours at once, to be closed
            _configure(settings)
        except BaseException:
            self.close()
            raise
        self._settings = settings


def _steered(fd: int, settings: TunSettings, queues: int) -> bool:
    try:
        steer(fd, (settings.ipv4.ip + 1, settings.ipv6.ip + 1), queues)
    except OSError as error:
        log.info("one process reads the TUN device: its queues cannot be steered (%s)", error)
        return False
    return True


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
