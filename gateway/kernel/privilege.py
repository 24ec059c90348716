"""What this process may do: its effective capabilities (capabilities(7))."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path

from gateway.errors import CapabilityError


class Capability(IntEnum):
    """Numbers of <linux/capability.h>."""

    NET_ADMIN = 12
    NET_RAW = 13
    SYS_ADMIN = 21


def has(capability: Capability) -> bool:
    """Whether this thread has the capability now."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False


def require_net_admin() -> None:
    """Raise ``CapabilityError`` where the kernel would refuse every change."""
    if not has(Capability.NET_ADMIN):
        raise CapabilityError(
            "only root may look at and change the kernel's firewall and routing",
            hint="use sudo, or give the service CAP_NET_ADMIN and CAP_NET_RAW",
        )
