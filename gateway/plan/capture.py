"""What a TUN takes by routing, for whoever sends it: everything, some prefixes, fake addresses.

Two ways. ``suppress``: a table of our own, and a ladder of ip rules in front of it, that leads
our own sockets past it (by their mark) and leaves to everybody the connected and static routes.
``split_default``: both halves of all addresses in the main table, longer than the default
route, which stays as it is; a mark leads to the same table there, so that own sockets need a
strategy of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final, Literal

from gateway.marks import (
    METRIC_UNREACHABLE,
    PRIORITY_BYPASS_DEFAULT,
    PRIORITY_BYPASS_END,
    PRIORITY_BYPASS_MAIN,
    PRIORITY_BYPASS_UID,
    PRIORITY_CAPTURE,
    PRIORITY_NEAR,
    TABLE_CAPTURE,
    TABLE_DEFAULT,
    TABLE_MAIN,
    Marks,
)
from gateway.plan.addresses import EVERYTHING, Family, Network
from gateway.plan.model import IpRule, Route

#: Never for a TUN, which has no neighbours: they go on as if it were not there.
_TO_NEIGHBOURS: Final[dict[Family, tuple[Network, ...]]] = {
    Family.V4: (ip_network("224.0.0.0/4"), ip_network("255.255.255.255/32")),
    Family.V6: (ip_network("ff00::/8"),),
}


@dataclass(frozen=True, slots=True)
class Capture:
    """What ``device`` takes.

    ``prefixes``: of either family, ``EVERYTHING`` among them. ``closed``: where the device has
    gone away, what it took is refused, not routed as before. ``uids`` run proxy programs of
    ours on this machine, which go past it.
    """

    device: str
    prefixes: tuple[Network, ...]
    by: Literal["suppress", "split_default"] = "suppress"
    closed: bool = True
    uids: tuple[int, ...] = ()


def capture_rules(
    capture: Capture, families: Iterable[Family], marks: Marks, down: int = 0
) -> tuple[IpRule, ...]:
    """The ladder, ``down`` below its priorities.

    Our own sockets, and the programs of ``uids``, take the main table or nothing: without the
    ``unreachable`` rung, a lost default route would lead them into the TUN. Everybody else
    keeps the connected and static routes and takes the TUN for the rest. It stands after the
    rules of VPNs that know their destinations.
    """
    if capture.by == "split_default":
        return ()
    bypass, main = marks.bypass, TABLE_MAIN
    rules: list[IpRule] = []
    for family in families:
        for uid in capture.uids:
            rules += [IpRule(PRIORITY_BYPASS_UID - down, family, "lookup", table=main, uid=uid)]
        rules += [
            IpRule(PRIORITY_BYPASS_MAIN - down, family, "lookup", table=main, mark=bypass),
            IpRule(
                PRIORITY_BYPASS_DEFAULT - down, family, "lookup", table=TABLE_DEFAULT, mark=bypass
            ),
            IpRule(PRIORITY_BYPASS_END - down, family, "unreachable", mark=bypass),
        ]
        for uid in capture.uids:
            rules += [IpRule(PRIORITY_BYPASS_END - down, family, "unreachable", uid=uid)]
        rules += [
            IpRule(PRIORITY_NEAR - down, family, "lookup", table=main, suppress_prefixlen=0),
            IpRule(PRIORITY_CAPTURE - down, family, "lookup", table=TABLE_CAPTURE),
        ]
    return tuple(rules)


def capture_routes(
    capture: Capture, families: Iterable[Family], table: int = TABLE_CAPTURE
) -> tuple[Route, ...]:
    """The routes into the device, and those that refuse what it took once it is gone.

    ``table``: where they stand, unless they have to be in the main one.
    """
    routes: list[Route] = []
    for family in families:
        taken = [p for p in capture.prefixes if p.version == EVERYTHING[family].version]
        if capture.by == "split_default":
            table = TABLE_MAIN
            taken = [half for prefix in taken for half in prefix.subnets()]
        routes += [Route(family, "unicast", prefix, capture.device, table) for prefix in taken]
        if capture.closed:
            routes += [
                Route(family, "unreachable", prefix, "lo", table, metric=METRIC_UNREACHABLE)
                for prefix in taken
            ]
    return tuple(routes)


def neighbour_routes(capture: Capture, families: Iterable[Family]) -> tuple[Route, ...]:
    """What is for neighbours goes past a TUN that takes everything by the ladder."""
    if capture.by == "split_default":
        return ()
    return tuple(
        Route(family, "throw", prefix, "lo", TABLE_CAPTURE)
        for family in families
        if EVERYTHING[family] in capture.prefixes
        for prefix in _TO_NEIGHBOURS[family]
    )
