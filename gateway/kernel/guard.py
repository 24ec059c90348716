"""The loop guard: whether an outbound's packets would enter our own diversion again.

The kernel is asked (a route lookup with the mark, source and device that the socket will
have), and its answer is judged by a pure function. Run at start, by ``gateway check``, and
on every link, address or route event. Call from a thread without an event loop.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address, ip_network
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from gateway.marks import ROUTE_PROTOCOL, TABLE_TPROXY, TABLE_TUN, Mark

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
class Egress:
    """A way that an outbound's sockets go: where to, and with which socket options.

    ``destination`` is an address; ``port`` is the upstream's, None for any.
    """

    outbound: str
    destination: str
    mark: Mark | None = None
    device: str | None = None
    source: str | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the kernel said. ``error`` is an errno, 0 where there is a route.

    ``assumed_on_link``: there is no route by that device; the kernel would ask for the
    destination itself by ARP (``ip_route_output_key_hash_rcu`` of net/ipv4/route.c).
    """

    error: int = 0
    local: bool = False
    table: int = 0
    device: str = ""
    gateway: str | None = None
    assumed_on_link: bool = False
    device_has_arp: bool = True

    def __str__(self) -> str:
        if self.error:
            return f"no route ({errno.errorcode.get(self.error, self.error)})"
        if self.assumed_on_link:
            return f"no route by dev {self.device}: assumed to be on the link"
        kind = "local " if self.local else ""
        via = f"via {self.gateway} " if self.gateway else ""
        return f"{kind}{via}dev {self.device} table {self.table}"


class Outcome(StrEnum):
    """What the guard found. The values stand in the API: do not rename them."""

    CLEAR = "clear"
    NO_ROUTE = "no-route"
    LOOP = "loop"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Finding:
    """The judgement on one way out; ``route`` is the kernel's answer as text."""

    egress: Egress
    outcome: Outcome
    route: str
    reason: str = ""
    hint: str = ""

    @property
    def ok(self) -> bool:
        """Whether the outbound may be used: a missing route fails flows, but cannot loop."""
        return self.outcome in (Outcome.CLEAR, Outcome.NO_ROUTE)


def judge(
    egress: Egress, answer: Answer, own_addresses: frozenset[str], listener_port: int | None
) -> Finding:
    """Judge one answer. ``own_addresses`` are this machine's, as canonical text."""

    def finding(outcome: Outcome, reason: str = "", hint: str = "") -> Finding:
        return Finding(egress, outcome, str(answer), reason, hint)

    address = ip_address(egress.destination)
    own = address.is_loopback or str(address) in own_addresses
    if own and listener_port is not None and egress.port == listener_port:
        return finding(
            Outcome.LOOP,
            f"{egress.destination} port {egress.port} is this gateway's own listener",
            "give the upstream or inbound.port another port",
        )
    if egress.device and egress.device != "lo" and own:
        return finding(
            Outcome.REFUSED,
            f"{egress.destination} is this machine's own: a socket bound to {egress.device}"
            " cannot reach it",
            "use route: mark, without interface, for a server on this machine",
        )
    if answer.table in (TABLE_TPROXY, TABLE_TUN) or (answer.local and not own):
        return finding(
            Outcome.LOOP,
            "the kernel would hand these packets to our own listener",
            "another ip rule sends the bypass mark into the diversion: see `ip rule`, or"
            " choose other bits with marks.base",
        )
    if answer.assumed_on_link and answer.device_has_arp:
        return finding(
            Outcome.REFUSED,
            f"no route to {egress.destination} by {egress.device}: the kernel would ask for"
            " it by ARP on the link",
            f"add one, with a metric if need be: ip route add default via GATEWAY dev"
            f" {egress.device} metric 1000",
        )
    if answer.error:
        return finding(
            Outcome.NO_ROUTE,
            f"no route to {egress.destination} now",
            "flows fail until there is one; it is looked up again when links or routes change",
        )
    return finding(Outcome.CLEAR)


def prove(egresses: Iterable[Egress], listener_port: int | None = None) -> tuple[Finding, ...]:
    """Ask the kernel about each way out, and judge; in the order given."""
    with IPRoute() as netlink:
        own = frozenset(
            str(ip_address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")))
            for message in netlink.get_addr()
        )
        links = {link.get_attr("IFLA_IFNAME"): link for link in netlink.get_links()}
        return tuple(
            judge(egress, _look_up(netlink, egress, links), own, listener_port)
            for egress in egresses
        )


def _look_up(netlink: IPRoute, egress: Egress, links: dict[str, Any]) -> Answer:
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
        link = links.get(egress.device)
        if link is None:
            return Answer(error=errno.ENODEV, device=egress.device)
        query["oif"] = link["index"]
        has_arp = not link["flags"] & _IFF_NOARP
    astray = _led_astray(netlink, query["family"], query.get("mark", 0), egress.source)
    if astray is not None:
        return astray
    try:
        return _ask(netlink, query, _RTM_F_LOOKUP_TABLE | _RTM_F_FIB_MATCH, links)
    except NetlinkError as error:
        failure = Answer(error=error.code, device=egress.device or "")
    if egress.device is None:
        return failure
    try:
        _ask(netlink, query, 0, links)
    except NetlinkError:
        return failure
    return Answer(device=egress.device, assumed_on_link=True, device_has_arp=has_arp)


def _led_astray(netlink: IPRoute, family: int, mark: int, source: str | None) -> Answer | None:
    """What the kernel will answer where a foreign rule leads into one of our tables.

    It does not say so yet while that table is empty, as it is before the gateway starts.
    """
    for rule in netlink.get_rules(family=family):
        table = rule.get_attr("FRA_TABLE")
        if (
            table in (TABLE_TPROXY, TABLE_TUN)
            and rule.get_attr("FRA_PROTOCOL") != ROUTE_PROTOCOL
            and (rule.get_attr("FRA_PRIORITY") or 0) < _PRIORITY_MAIN
            and rule.get_attr("FRA_IIFNAME") in (None, "lo")
            and _is_from(rule, source)
            and (mark ^ (rule.get_attr("FRA_FWMARK") or 0)) & (rule.get_attr("FRA_FWMASK") or 0)
            == 0
        ):
            return Answer(local=True, table=table, device="lo")
    return None


def _is_from(rule: Any, source: str | None) -> bool:
    """Whether the rule's ``from`` fits a socket; one that is bound to no source has none yet."""
    wanted = rule.get_attr("FRA_SRC")
    if wanted is None:
        return True
    network = ip_network(f"{wanted}/{rule['src_len']}", strict=False)
    return source is not None and ip_address(source) in network


def _ask(netlink: IPRoute, query: dict[str, Any], flags: int, links: dict[str, Any]) -> Answer:
    message = next(iter(netlink.route("get", flags=flags, **query)))
    index = message.get_attr("RTA_OIF")
    names = [name for name, link in links.items() if link["index"] == index]
    via = message.get_attr("RTA_VIA")
    return Answer(
        local=message["type"] == _RTN_LOCAL,
        table=message.get_attr("RTA_TABLE") or message["table"],
        device=names[0] if names else "",
        gateway=message.get_attr("RTA_GATEWAY") or (via or {}).get("addr"),
    )
