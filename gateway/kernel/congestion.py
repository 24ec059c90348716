"""TCP congestion control by name: what this kernel has, and what suits the LAN.

A proxy ends one connection and begins another, so each leg may have its own (tcp(7),
``TCP_CONGESTION``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gateway.errors import CapabilityError
from gateway.kernel.sockets import set_congestion, throwaway

#: The configuration's words for what is not a name.
AUTO: Final = "auto"
SYSTEM: Final = "system"

#: Where the system's suits the LAN badly. Every kernel has it, and every process may use it.
_UNPACED: Final = "reno"
#: It paces what it sends by a timer for each burst. Over a single hop, with no queue but our
#: own, that gains nothing, and it may be most of what sending costs.
_PACED: Final = "bbr"


def usable(name: str) -> bool:
    """Whether this process may use it; the kernel loads its module if it has to (and may)."""
    with throwaway() as sock:
        try:
            set_congestion(sock, name)
        except OSError:
            return False
    return True


def require(names: Iterable[str]) -> None:
    """Raise ``CapabilityError`` where one of these is not usable."""
    for name in sorted(set(names)):
        if not usable(name):
            raise CapabilityError(
                f"TCP congestion control {name} is not to be had",
                f"modprobe tcp_{name} (sysctl net.ipv4.tcp_available_congestion_control lists"
                " what is loaded), or write system",
            )


def for_lan(wanted: str, system: str | None) -> str | None:
    """What the LAN's side is to use; None for what the system uses.

    ``system``: the value of ``net.ipv4.tcp_congestion_control``.
    """
    if wanted == AUTO:
        return _UNPACED if system == _PACED else None
    return for_outbound(wanted)


def for_outbound(wanted: str) -> str | None:
    """What an outbound's sockets are to use; None for what the system uses."""
    return None if wanted == SYSTEM else wanted
