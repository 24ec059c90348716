"""How each outbound goes its way: the strategy that its ``route:`` names, for this machine.

Every strategy fails closed by itself: what it adds to the kernel ends in ``unreachable``, and
takes effect without us when a link goes down.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network

from gateway.config.outbounds import DirectOutbound, Socks5Outbound
from gateway.config.schema import Config
from gateway.decision import DIRECT
from gateway.marks import (
    METRIC_HOST_ROUTE,
    METRIC_UNREACHABLE,
    PRIORITY_SOURCE,
    PRIORITY_SOURCE_END,
    PRIORITY_UNROUTED,
    REALM_UNROUTED,
    TABLE_MAIN,
    TABLE_UPLINKS,
    TABLES_UNROUTED,
    Mark,
    Marks,
)
from gateway.plan.addresses import EVERYTHING, Family, Network
from gateway.plan.egress import ANYWHERE, Egress, Entry, Strategy, family_of
from gateway.plan.host import DefaultRoute, HostFacts, Interface
from gateway.plan.model import IpRule, Route
from gateway.plan.routing import shift

#: Tables of our own, by strategy and device.
_Tables = Mapping[tuple[Strategy, str], int]


def egresses(
    config: Config, host: HostFacts, upstreams: Mapping[str, tuple[str, ...]]
) -> tuple[Egress, ...]:
    """Every way out, in the order of the file.

    ``upstreams``: what the names of SOCKS servers resolve to, by outbound; servers given by
    address need no entry.
    """
    marks = Marks(config.marks.base)
    tables = _tables(config, host)
    return tuple(
        _apart(_with_strategy(bare, outbound, host, marks, tables), outbound, config, host)
        for name in (DIRECT, *(name for name in config.outbounds if name != DIRECT))
        for outbound in [config.outbound(name)]
        if isinstance(outbound, DirectOutbound | Socks5Outbound)
        for bare in _bare(name, outbound, upstreams, marks.bypass)
    )


def server_addresses(
    name: str, outbound: Socks5Outbound, upstreams: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """The addresses of a SOCKS server; none for a name that was not resolved."""
    found = []
    for server in upstreams.get(name, (outbound.server,)):
        with suppress(ValueError):
            found.append(str(ip_address(server)))
    return tuple(found)


def uplink(host: HostFacts, family: Family, interface: str | None) -> DefaultRoute | None:
    """The best default route of the main table (by ``interface``, if one is given).

    One that has a gateway goes before one without: the latter are mostly other tunnels, which
    may have taken over the default. A device without ARP needs no default route.
    """
    known = [
        route
        for route in host.default_routes
        if route.family == family and route.interface and interface in (None, route.interface)
    ]
    if known:
        return min(known, key=lambda route: (route.via is None, route.metric))
    link = _interface(host, interface)
    if link is not None and link.up and not link.has_arp:
        return DefaultRoute(family.value, link.name)
    return None


def _bare(
    name: str,
    outbound: DirectOutbound | Socks5Outbound,
    upstreams: Mapping[str, tuple[str, ...]],
    mark: Mark,
) -> Iterator[Egress]:
    source = None if outbound.source is None else str(outbound.source)
    port = None
    destinations: tuple[str, ...] = ANYWHERE
    if isinstance(outbound, Socks5Outbound):
        destinations, port = server_addresses(name, outbound, upstreams), outbound.port
    for destination in destinations:
        if source is None or family_of(source) == family_of(destination):
            yield Egress(name, destination, mark, source=source, port=port, netns=outbound.netns)


def _with_strategy(
    bare: Egress,
    outbound: DirectOutbound | Socks5Outbound,
    host: HostFacts,
    marks: Marks,
    tables: _Tables,
) -> Egress:
    strategy = _chosen(outbound, bare.destination, host)
    way = replace(bare, strategy=strategy)
    match strategy:
        case "device":
            return _by_device(way, outbound.interface, host, marks.bypass, tables)
        case "source":
            return _by_source(way, outbound.interface, host, marks.bypass, tables)
        case "host_route":
            return _by_host_route(way, outbound.interface, host)
        case "uid" | "cgroup":
            assert isinstance(outbound, Socks5Outbound)
            return _of_program(way, outbound, host)
        case _:
            return way


def _apart(
    way: Egress, outbound: DirectOutbound | Socks5Outbound, config: Config, host: HostFacts
) -> Egress:
    """Refused where what we divert ourselves is in its way."""
    here = _is_here(way.destination, host)
    if here and config.takes_own and isinstance(outbound, Socks5Outbound) and _is_unnamed(outbound):
        return _not_now(
            way,
            f"the proxy on {way.destination} is on this machine, whose own traffic is diverted:"
            " what it sends would come back to it, for ever",
            "say which user or control group it runs as (`uid:`, `cgroup:`)",
        )
    # The mark leads to the main table, and of that our own TUN may have taken both halves.
    halves = config.tun.capture == "default-route" and config.tun.strategy == "split_default"
    if not halves or way.strategy != "mark" or here:
        return way
    return _not_now(
        way,
        f"tun.strategy: split_default has taken {way.destination} from the main table",
        "give this outbound `route:` device, source, host_route or netns, or use `suppress`",
    )


def _chosen(
    outbound: DirectOutbound | Socks5Outbound, destination: str, host: HostFacts
) -> Strategy:
    """What ``auto`` means here.

    A socket that is bound to an uplink cannot reach a loopback or own address: its SYN leaves
    by the wire.
    """
    if outbound.route != "auto":
        return outbound.route
    if outbound.netns is not None:
        return "netns"
    if isinstance(outbound, Socks5Outbound):
        if outbound.uid is not None:
            return "uid"
        if outbound.cgroup is not None:
            return "cgroup"
        if _is_here(destination, host):
            return "mark"
    return "mark" if outbound.interface is None else "device"


def _is_unnamed(outbound: Socks5Outbound) -> bool:
    """Whether nothing says which program, or which namespace, the server is."""
    return outbound.uid is None and outbound.cgroup is None and outbound.netns is None


def _is_here(address: str, host: HostFacts) -> bool:
    return ip_address(address).is_loopback or address in host.addresses


# --- device ----------------------------------------------------------------------------------


def _by_device(
    way: Egress, device: str | None, host: HostFacts, mark: Mark, tables: _Tables
) -> Egress:
    """Bound to a device; what has no route by it is refused by the kernel itself.

    Behind all other ip rules, such a packet finds a route that says what the kernel would only
    assume, that its destination is on the link; by its realm it is known. (IPv6 assumes nothing.)
    """
    way = replace(way, device=device)
    link, family = _interface(host, device), way.family
    if family is Family.V6 or device is None or link is None or not (link.up and link.has_arp):
        return way
    table = tables["device", device]
    return replace(
        way,
        entries=(
            Route(family, "unicast", EVERYTHING[family], device, table),
            IpRule(
                PRIORITY_UNROUTED,
                family,
                "lookup",
                table=table,
                mark=mark,
                oif=device,
                realm=REALM_UNROUTED,
            ),
        ),
    )


# --- source ----------------------------------------------------------------------------------


def _by_source(
    way: Egress, interface: str | None, host: HostFacts, mark: Mark, tables: _Tables
) -> Egress:
    """Bound to an address of an uplink, with a table that knows that uplink alone (ip rule from).

    The rule asks for the mark too: other programs that use the address stay captured.
    """
    family = way.family
    device = interface or _holder(host, way.source)
    source = way.source or _address(host, device, family)
    if device is None:
        return _not_now(
            way,
            f"{source} is not an address of this machine now",
            "`ip address` lists them; give `interface:` instead where the address changes",
        )
    if source is None or _holder(host, source) != device:
        wanted = source or f"an {family.value} address to send from"
        return _not_now(
            way, f"{device} does not have {wanted} now", f"see `ip address show dev {device}`"
        )
    first = PRIORITY_SOURCE - shift(host)
    from_it = ip_network(source)
    end = first + PRIORITY_SOURCE_END - PRIORITY_SOURCE
    closed = IpRule(end, family, "unreachable", mark=mark, source=from_it)
    hop = uplink(host, family, device)
    if hop is None:
        return _no_uplink(replace(way, source=source, entries=(closed,)), device)
    table = tables["source", device]
    link = _interface(host, device)
    near = {a.network for a in link.addresses if a.version == family.version} if link else ()
    needed: list[Entry] = [
        *(
            Route(family, "unicast", network, device, table)
            for network in sorted(near, key=str)
            if network.prefixlen < network.max_prefixlen and not network.is_link_local
        ),
        Route(family, "unicast", EVERYTHING[family], device, table, via=hop.via),
        IpRule(first, family, "lookup", table=table, mark=mark, source=from_it),
        closed,
    ]
    return replace(way, source=source, uplink=device, via=hop.via, entries=tuple(needed))


def _tables(config: Config, host: HostFacts) -> dict[tuple[Strategy, str], int]:
    """A table for each interface that outbounds leave by from a bound address, or bound to it."""
    ways = [o for o in config.outbounds.values() if isinstance(o, DirectOutbound | Socks5Outbound)]
    from_address = {
        o.interface or _holder(host, str(o.source)) for o in ways if o.route == "source"
    }
    named = sorted(device for device in from_address if device is not None)
    links = sorted({o.interface for o in ways if o.interface is not None})
    return {
        **{("source", device): TABLE_UPLINKS + index for index, device in enumerate(named)},
        **{("device", device): TABLES_UNROUTED[index] for index, device in enumerate(links)},
    }


def _interface(host: HostFacts, name: str | None) -> Interface | None:
    return next((link for link in host.interfaces if link.name == name), None)


def _holder(host: HostFacts, address: str | None) -> str | None:
    """The interface that has the address."""
    for link in host.interfaces:
        if any(str(own.ip) == address for own in link.addresses):
            return link.name
    return None


def _address(host: HostFacts, device: str | None, family: Family) -> str | None:
    link = _interface(host, device)
    lasting = link.lasting if link else ()
    return next((str(a) for a in lasting if a.version == family.version), None)


# --- host_route ------------------------------------------------------------------------------


def _by_host_route(way: Egress, interface: str | None, host: HostFacts) -> Egress:
    """A route to the server alone, longer than anything that captures, in the main table.

    Behind it one that is ``unreachable``: where the link goes down, the kernel removes the
    first by itself, and without the second the server would be looked for in the capture.
    """
    if _is_here(way.destination, host):
        return way  # the table ``local`` comes first
    server, family = ip_network(way.destination), way.family
    closed = Route(family, "unreachable", server, "lo", TABLE_MAIN, metric=METRIC_UNREACHABLE)
    link = _on_link(host, server, interface)
    hop = DefaultRoute(family.value, link.name) if link else uplink(host, family, interface)
    if hop is None:
        return _no_uplink(replace(way, entries=(closed,)), interface)
    route = Route(
        family, "unicast", server, hop.interface, TABLE_MAIN, via=hop.via, metric=METRIC_HOST_ROUTE
    )
    return replace(way, uplink=hop.interface, via=hop.via, entries=(route, closed))


def _on_link(host: HostFacts, server: Network, interface: str | None) -> Interface | None:
    """The interface whose own network the server is in."""
    for link in host.interfaces:
        if interface in (None, link.name) and link.up:
            for own in link.addresses:
                if own.version == server.version and server.network_address in own.network:
                    return link
    return None


# --- a proxy program on this machine ---------------------------------------------------------


def _of_program(way: Egress, outbound: Socks5Outbound, host: HostFacts) -> Egress:
    if not _is_here(way.destination, host):
        return _not_now(
            way,
            f"{way.destination} is not on this machine, so no user or control group here runs it",
            "use another route: for this outbound, such as mark",
        )
    if way.strategy == "cgroup":
        if outbound.cgroup not in host.cgroups:
            return _not_now(
                way,
                f"there is no control group {outbound.cgroup} now",
                "start the program, or name a slice that outlives it; see `systemd-cgls`",
            )
        return replace(way, cgroup=outbound.cgroup)
    uid = outbound.uid
    number = uid if isinstance(uid, int) else host.users.get(str(uid))
    if number is None:
        return _not_now(way, f"there is no user {uid} on this machine", "see `getent passwd`")
    return replace(way, uid=number)


def _not_now(way: Egress, problem: str, cure: str) -> Egress:
    return replace(way, problem=problem, cure=cure)


def _no_uplink(way: Egress, device: str | None) -> Egress:
    family = way.family.value
    if device is None:
        return _not_now(
            way,
            f"there is no {family} default route that a route to the server could follow",
            "it follows by itself once there is one; or give `interface:`",
        )
    return _not_now(
        way,
        f"there is no {family} default route by {device} now",
        f"it is used again once there is one: ip route add default via GATEWAY dev {device}"
        " metric 1000",
    )
