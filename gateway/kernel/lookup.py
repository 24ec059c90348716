"""Asks the kernel where packets would go: a route lookup with mark, source and device.

Call from a thread without an event loop.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from itertools import groupby
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from gateway.kernel import accounts, netns, routes
from gateway.marks import DIVERTING_TABLES, ROUTE_PROTOCOL, TABLES_UNROUTED, Mark
from gateway.plan.egress import Egress, Entry

# <linux/rtnetlink.h>. LOOKUP_TABLE: name the table that answered; without it the kernel
# says "main" whatever was used. FIB_MATCH: answer with the route itself, and with an error
# where there is none and the kernel would only assume that the destination is on the link.
_RTM_F_LOOKUP_TABLE = 0x1000
_RTM_F_FIB_MATCH = 0x2000
_RTN_LOCAL = 2
_IFF_NOARP = 0x80
#: Of the rule that looks up the main table, where a lookup ends on most machines (ip-rule(8)).
_PRIORITY_MAIN = 32766


@dataclass(frozen=True, slots=True)
class Answer:
    """What the kernel said. ``error`` is an errno, 0 where there is a route.

    ``own``: the destination is an address of this machine (or namespace), and ``users`` are
    those that listen there, by number. ``assumed_on_link``: there is no route by that device;
    the kernel would ask for the destination itself by ARP (``ip_route_output_key_hash_rcu`` of
    net/ipv4/route.c). ``captured``: the route is ours and leads into a TUN. ``planned``: what
    it will say once the plan is installed.
    """

    error: int = 0
    local: bool = False
    table: int = 0
    device: str = ""
    gateway: str | None = None
    assumed_on_link: bool = False
    device_has_arp: bool = True
    own: bool = False
    users: frozenset[int] = frozenset()
    captured: bool = False
    planned: bool = False

    def __str__(self) -> str:
        if self.error:
            return f"no route ({errno.errorcode.get(self.error, self.error)})"
        if self.assumed_on_link:
            return f"no route by dev {self.device}: assumed to be on the link"
        kind = "local " if self.local else ""
        via = f"via {self.gateway} " if self.gateway else ""
        table = f" table {self.table}" if self.table else ""
        once = " (once the gateway is up)" if self.planned else ""
        return f"{kind}{via}dev {self.device}{table}{once}"


def look_up(egresses: Iterable[Egress]) -> list[Answer]:
    """One answer for each, in order."""
    installed: frozenset[Entry] = frozenset()
    wanted = tuple(egresses)
    if any(way.entries for way in wanted):
        found = routes.read()
        installed = found.ip_rules | found.routes
    answers: list[Answer] = []
    for name, ways in groupby(wanted, key=lambda way: way.netns):
        answers += _within(name, tuple(ways), installed)
    return answers


def forwarding(source: str, destination: str, interface: str, mark: Mark | None = None) -> Answer:
    """Where the kernel would forward a packet that came in on an interface."""
    with IPRoute() as netlink:
        view = _View.take(netlink)
        own = str(ip_address(destination)) in view.own
        link = view.links.get(interface)
        if link is None:
            return Answer(error=errno.ENODEV, device=interface)
        query = {
            "family": 10 if ":" in destination else 2,
            "src": source,
            "dst": destination,
            "iif": link["index"],
            "mark": mark.value if mark else 0,
        }
        try:
            return replace(view.ask(query, _RTM_F_LOOKUP_TABLE | _RTM_F_FIB_MATCH), own=own)
        except NetlinkError as error:
            return Answer(error=error.code, device=interface)


def _within(
    name: str | None, ways: tuple[Egress, ...], installed: frozenset[Entry]
) -> list[Answer]:
    try:
        # A netlink socket, too, belongs to the namespace that it was made in.
        with nullcontext() if name is None else netns.entered(name), IPRoute() as netlink:
            view = _View.take(netlink)
            return [view.answer(way, installed) for way in ways]
    except OSError as error:
        if name is None:
            raise
        return [Answer(error=error.errno or errno.ENOENT)] * len(ways)


@dataclass(frozen=True, slots=True)
class _View:
    """One network namespace, with what of it every answer needs."""

    netlink: IPRoute
    own: frozenset[str]
    links: dict[str, Any]

    @classmethod
    def take(cls, netlink: IPRoute) -> _View:
        own = frozenset(
            str(ip_address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")))
            for message in netlink.get_addr()
        )
        links = {link.get_attr("IFLA_IFNAME"): link for link in netlink.get_links()}
        return cls(netlink, own, links)

    def answer(self, egress: Egress, installed: frozenset[Entry]) -> Answer:
        address = ip_address(egress.destination)
        if address.is_loopback or str(address) in self.own:
            users = accounts.listener_users(str(address), egress.port or 0)
            return replace(self._look_up(egress), own=True, users=users)
        if egress.uplink and not installed.issuperset(egress.entries):
            return Answer(device=egress.uplink, gateway=egress.via, planned=True)
        return self._look_up(egress)

    def _look_up(self, egress: Egress) -> Answer:
        query: dict[str, Any] = {
            "family": 10 if ":" in egress.destination else 2,
            "dst": egress.destination,
        }
        if egress.mark is not None:
            query["mark"] = egress.mark.value
        if egress.source is not None:
            query["src"] = egress.source
        has_arp = True
        if egress.device is not None:
            link = self.links.get(egress.device)
            if link is None:
                return Answer(error=errno.ENODEV, device=egress.device)
            query["oif"] = link["index"]
            has_arp = not link["flags"] & _IFF_NOARP
        astray = self._led_astray(query["family"], query.get("mark", 0), egress.source)
        if astray is not None:
            return astray
        assumed = Answer(device=egress.device or "", assumed_on_link=True, device_has_arp=has_arp)
        try:
            found = self.ask(query, _RTM_F_LOOKUP_TABLE | _RTM_F_FIB_MATCH)
        except NetlinkError as error:
            failure = Answer(error=error.code, device=egress.device or "")
        else:
            # A route of ours that says so; what takes it is refused (``gateway.plan.egress``).
            return assumed if found.table in TABLES_UNROUTED else found
        if egress.device is None:
            return failure
        try:
            self.ask(query, 0)
        except NetlinkError:
            return failure
        return assumed

    def _led_astray(self, family: int, mark: int, source: str | None) -> Answer | None:
        """What the kernel will answer where a foreign rule leads into one of our tables.

        It does not say so yet while that table is empty, as it is before the gateway starts.
        """
        for rule in self.netlink.get_rules(family=family):
            table = rule.get_attr("FRA_TABLE")
            if (
                table in DIVERTING_TABLES
                and rule.get_attr("FRA_PROTOCOL") != ROUTE_PROTOCOL
                and (rule.get_attr("FRA_PRIORITY") or 0) < _PRIORITY_MAIN
                and rule.get_attr("FRA_IIFNAME") in (None, "lo")
                and _is_from(rule, source)
                and (mark ^ (rule.get_attr("FRA_FWMARK") or 0)) & (rule.get_attr("FRA_FWMASK") or 0)
                == 0
            ):
                return Answer(local=True, table=table, device="lo")
        return None

    def ask(self, query: dict[str, Any], flags: int) -> Answer:
        """One lookup. Raises ``NetlinkError`` where there is no route."""
        message = next(iter(self.netlink.route("get", flags=flags, **query)))
        index = message.get_attr("RTA_OIF")
        names = [name for name, link in self.links.items() if link["index"] == index]
        via = message.get_attr("RTA_VIA")
        device = names[0] if names else ""
        return Answer(
            local=message["type"] == _RTN_LOCAL,
            table=message.get_attr("RTA_TABLE") or message["table"],
            device=device,
            gateway=message.get_attr("RTA_GATEWAY") or (via or {}).get("addr"),
            captured=message["proto"] == ROUTE_PROTOCOL and _is_tun(self.links.get(device)),
        )


def _is_tun(link: Any) -> bool:
    information = link.get_attr("IFLA_LINKINFO") if link else None
    return information is not None and information.get_attr("IFLA_INFO_KIND") == "tun"


def _is_from(rule: Any, source: str | None) -> bool:
    """Whether the rule's ``from`` fits a socket; one that is bound to no source has none yet."""
    wanted = rule.get_attr("FRA_SRC")
    if wanted is None:
        return True
    network = ip_network(f"{wanted}/{rule['src_len']}", strict=False)
    return source is not None and ip_address(source) in network
