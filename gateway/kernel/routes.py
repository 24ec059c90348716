"""Policy routing through rtnetlink: our ip rules and routes, told apart by ``ROUTE_PROTOCOL``.

pyroute2 ignores keywords that it does not know, and some that it does, so what was set is
always read back and compared. Its ``IPRoute`` runs an event loop of its own: call these
functions from a thread that has none running (``asyncio.to_thread``).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from gateway.errors import ApplyError
from gateway.marks import ROUTE_PROTOCOL, Mark
from gateway.plan.addresses import EVERYTHING, Family, Network
from gateway.plan.model import IpRule, Route
from gateway.plan.render_ip import route_line, rule_line

_AF = {Family.V4: 2, Family.V6: 10}
_FAMILY = {number: family for family, number in _AF.items()}

# FR_ACT_* of <linux/fib_rules.h>
_ACTIONS = {"lookup": 1, "goto": 2, "nop": 3, "unreachable": 7}
_ACTION_NAMES = {number: name for name, number in _ACTIONS.items()}
# RTN_* and RT_SCOPE_* of <linux/rtnetlink.h>; IPv6 routes have no scope.
_KINDS = {"unicast": 1, "local": 2, "unreachable": 7, "throw": 9}
_KIND_NAMES = {number: name for name, number in _KINDS.items()}
_SCOPES = {"unicast": 253, "local": 254, "unreachable": 0, "throw": 0}

_RTNH_F_ONLINK = 4
#: What the kernel gives a route that asks for no metric (``IP6_RT_PRIO_USER``).
_DEFAULT_METRIC = {Family.V4: 0, Family.V6: 1024}
_SUPPRESS_NONE = 0xFFFF_FFFF

_GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV)

Entry = IpRule | Route


@dataclass(frozen=True, slots=True)
class Installed:
    """The ip rules and routes in the kernel that carry our protocol number."""

    ip_rules: frozenset[IpRule]
    routes: frozenset[Route]


def read() -> Installed:
    """What of ours is installed, both families, all tables. Raises ``ApplyError``."""
    try:
        with IPRoute() as netlink:
            return _read(netlink)
    except NetlinkError as error:
        raise ApplyError(f"routes cannot be read: {error.args[-1]}", _cure(error.code)) from error


def add(entries: Iterable[Entry]) -> None:
    """Add them in order, and read them back.

    Raises ``ApplyError`` where the kernel refuses one or did not take it as it was meant;
    those that went before stay (the caller undoes).
    """
    wanted = tuple(entries)
    if not wanted:
        return
    with IPRoute() as netlink:
        for entry in wanted:
            _change(netlink, "add", entry)
        _verify(netlink, wanted)


def replace(route: Route) -> None:
    """Put a route in the place of ours that is there, in one step. Raises as ``add`` does."""
    with IPRoute() as netlink:
        _change(netlink, "replace", route)
        _verify(netlink, (route,))


def _verify(netlink: IPRoute, wanted: tuple[Entry, ...]) -> None:
    found = _read(netlink)
    missing = set(wanted) - found.ip_rules - found.routes
    if missing:
        raise ApplyError(
            "the kernel took it otherwise: "
            + "; ".join(sorted(describe(entry, "add") for entry in missing)),
            hint="compare with `ip rule` and `ip route show table all`",
        )


def remove(entries: Iterable[Entry]) -> None:
    """Remove them in order; one that is gone already is no error. Raises ``ApplyError``."""
    unwanted = tuple(entries)
    if not unwanted:
        return
    with IPRoute() as netlink:
        for entry in unwanted:
            _change(netlink, "del", entry)


def describe(entry: Entry, verb: str) -> str:
    """The command of ip(8) that would do the same: ``add``, ``replace`` or ``del``."""
    return route_line(entry, verb) if isinstance(entry, Route) else rule_line(entry, verb)


def _change(netlink: IPRoute, command: str, entry: Entry) -> None:
    try:
        if isinstance(entry, Route):
            netlink.route(command, **_route_message(netlink, entry))
        else:
            netlink.rule(command, **_rule_message(entry))
    except NetlinkError as error:
        if command == "del" and error.code in _GONE:
            return
        raise ApplyError(
            f"{describe(entry, command)}: {error.args[-1]}",
            hint=_cure(error.code),
        ) from error


def _cure(code: int) -> str:
    if code == errno.EPERM:
        return "run as root (CAP_NET_ADMIN)"
    if code in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
        return "this kernel has no IPv6 or no policy routing (CONFIG_IP_MULTIPLE_TABLES)"
    return "check that the interface exists and is up (`ip link`; `lo` too)"


def _rule_message(rule: IpRule) -> dict[str, Any]:
    message: dict[str, Any] = {
        "family": _AF[rule.family],
        "priority": rule.priority,
        "action": _ACTIONS[rule.action],
        "protocol": ROUTE_PROTOCOL,
    }
    if rule.table is not None:
        message["table"] = rule.table
    if rule.goto is not None:
        message["goto"] = rule.goto
    if rule.mark is not None:
        message |= {"fwmark": rule.mark.value, "fwmask": rule.mark.mask}
    if rule.iif is not None:
        message["iifname"] = rule.iif
    if rule.oif is not None:
        message["oifname"] = rule.oif
    if rule.realm is not None:
        message["FRA_FLOW"] = rule.realm
    if rule.source is not None:
        message["src"] = str(rule.source.network_address)
        message["src_len"] = rule.source.prefixlen
    if rule.uid is not None:
        message["uid_range"] = f"{rule.uid}:{rule.uid}"
    if rule.suppress_prefixlen is not None:
        # Not "suppress_prefixlength", which pyroute2 ignores.
        message["FRA_SUPPRESS_PREFIXLEN"] = rule.suppress_prefixlen
    return message


def _route_message(netlink: IPRoute, route: Route) -> dict[str, Any]:
    message: dict[str, Any] = {
        "family": _AF[route.family],
        "type": _KINDS[route.kind],
        "dst": str(route.destination),
        "table": route.table,
        "proto": ROUTE_PROTOCOL,
        "scope": _scope(route),
    }
    if route.metric is not None:
        message["priority"] = route.metric
    if route.via is not None:
        # The gateway of a default route need not be in a network of its link.
        message |= {"gateway": route.via, "flags": _RTNH_F_ONLINK}
    if route.kind in ("unicast", "local"):
        found = netlink.link_lookup(ifname=route.device)
        if not found:
            raise ApplyError(
                f"{describe(route, 'add')}: there is no interface {route.device}",
                hint="`ip link` lists the interfaces of this machine",
            )
        message["oif"] = found[0]
    return message


def _scope(route: Route) -> int:
    if route.family is Family.V6 or route.via is not None:
        return 0
    return _SCOPES[route.kind]


def _read(netlink: IPRoute) -> Installed:
    names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in netlink.get_links()}
    rules, routes = set(), set()
    for family in _AF.values():
        for message in netlink.get_rules(family=family):
            if message.get_attr("FRA_PROTOCOL") == ROUTE_PROTOCOL:
                rules.add(_rule(message))
        for message in netlink.get_routes(family=family):
            if message["proto"] == ROUTE_PROTOCOL:
                routes.add(_route(message, names))
    return Installed(frozenset(rules), frozenset(routes))


def _rule(message: Any) -> IpRule:
    action: Any = _ACTION_NAMES.get(message["action"], "lookup")
    # The kernel tells no part that is 0, so that a mark of 0 is known by its mask alone.
    value, mask = message.get_attr("FRA_FWMARK"), message.get_attr("FRA_FWMASK")
    uids = message.get_attr("FRA_UID_RANGE")
    suppressed = message.get_attr("FRA_SUPPRESS_PREFIXLEN")
    return IpRule(
        priority=message.get_attr("FRA_PRIORITY") or 0,
        family=_FAMILY[message["family"]],
        action=action,
        table=message.get_attr("FRA_TABLE") if action == "lookup" else None,
        goto=message.get_attr("FRA_GOTO"),
        mark=Mark(value or 0, mask or 0xFFFF_FFFF) if value or mask else None,
        iif=message.get_attr("FRA_IIFNAME"),
        oif=message.get_attr("FRA_OIFNAME"),
        realm=message.get_attr("FRA_FLOW") or None,
        source=_source(message),
        uid=None if uids is None else int(str(uids).partition(":")[0]),
        suppress_prefixlen=None if suppressed in (None, _SUPPRESS_NONE) else suppressed,
    )


def _source(message: Any) -> Network | None:
    address = message.get_attr("FRA_SRC")
    return None if address is None else ip_network(f"{address}/{message['src_len']}")


def _route(message: Any, names: dict[int, str]) -> Route:
    family = _FAMILY[message["family"]]
    prefix = f"{message.get_attr('RTA_DST')}/{message['dst_len']}"
    kind: Any = _KIND_NAMES.get(message["type"], "unicast")
    metric = message.get_attr("RTA_PRIORITY")
    return Route(
        family=family,
        kind=kind,
        destination=ip_network(prefix) if message["dst_len"] else EVERYTHING[family],
        device=names.get(message.get_attr("RTA_OIF"), "lo"),
        table=message.get_attr("RTA_TABLE"),
        via=message.get_attr("RTA_GATEWAY") or (message.get_attr("RTA_VIA") or {}).get("addr"),
        metric=None if metric in (None, _DEFAULT_METRIC[family]) else metric,
    )
