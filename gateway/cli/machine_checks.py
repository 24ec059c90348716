"""Checks of the machine itself: privileges, kernel features, limits and kernel settings."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.cli.examination import Check, Examined, fail, ok, warn
from gateway.config.outbounds import DirectOutbound, Socks5Outbound
from gateway.plan.backend import needed
from gateway.plan.model import Backend

#: Two sockets a flow, and pipes while bytes move; a house with a few busy machines has hundreds.
FILES_NEEDED = 8192


def privileges(seen: Examined) -> Iterator[Check]:
    """Netfilter and routing need CAP_NET_ADMIN, python-iptables CAP_NET_RAW too."""
    missing = {"CAP_NET_ADMIN", "CAP_NET_RAW"} - seen.readings.capabilities
    if missing:
        yield fail("privileges", f"without {', '.join(sorted(missing))}", "run it as root")
    else:
        yield ok("privileges", "CAP_NET_ADMIN and CAP_NET_RAW")


def software(seen: Examined) -> Iterator[Check]:
    """What a bug report must say."""
    yield ok("software", f"Python {seen.readings.python}, Linux {seen.readings.kernel}")


def features(seen: Examined) -> Iterator[Check]:
    """What each backend needs; a missing one only warns, since only one backend is used."""
    for backend in Backend:
        needs = needed(backend, nfqueue=seen.nfqueue, transparent=seen.transparent)
        for name, cure in needs.items():
            feature = seen.facts.features.get(name)
            if feature is None:
                yield warn(name, f"not probed ({backend} backend)", "run it as root")
            elif feature.available:
                yield ok(name, feature.detail)
            else:
                yield warn(name, f"{feature.detail} ({backend} backend)", cure)


def ipv6(seen: Examined) -> Iterator[Check]:
    """Without IPv6 in the kernel only IPv4 is diverted, and nothing of IPv6 can leak."""
    feature = seen.facts.features.get("ipv6")
    if feature is not None:
        yield ok("ipv6", feature.detail)


def file_limit(seen: Examined) -> Iterator[Check]:
    """Each flow holds descriptors; the gateway raises its limit itself, up to the hard one."""
    limit = seen.readings.file_limit
    if limit < FILES_NEEDED:
        yield warn(
            "open files",
            f"at most {limit}: flows beyond that are refused",
            f"ulimit -Hn {FILES_NEEDED * 8}, or LimitNOFILE={FILES_NEEDED * 8} in the service",
        )
    else:
        yield ok("open files", f"at most {limit}")


def forwarding(seen: Examined) -> Iterator[Check]:
    """Flows that rules send direct are forwarded by the kernel."""
    turned_on = seen.config is not None and seen.config.lan.forwarding and bool(seen.lan)
    for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        value = seen.sysctl(key)
        if value is None:
            continue
        if value != "0":
            yield ok(key, f"is {value}")
        elif turned_on:
            yield ok(key, "is 0; the gateway turns it on while it is up (lan.forwarding)")
        else:
            yield warn(
                key, "is 0: flows that rules send direct are not forwarded", f"sysctl -w {key}=1"
            )


def reverse_path(seen: Examined) -> Iterator[Check]:
    """Strict validation drops replies on an uplink that the default route does not use.

    The kernel takes the larger of ``all`` and the interface's own value
    (Documentation/networking/ip-sysctl.rst).
    """
    uplinks = {route.interface for route in seen.facts.default_routes if route.family == "ipv4"}
    for name in sorted({*seen.lan, *uplinks, *_outbound_interfaces(seen)}):
        values = [
            seen.sysctl("net.ipv4.conf.all.rp_filter"),
            seen.interface_sysctl("ipv4", name, "rp_filter"),
        ]
        effective = max((int(value) for value in values if value), default=0)
        label = f"rp_filter {name}"
        if effective == 1 and name in _outbound_interfaces(seen) - uplinks:
            yield warn(
                label,
                "1 (strict): replies on this second uplink are dropped",
                f"sysctl -w net.ipv4.conf.all.rp_filter=0"
                f" net.ipv4.conf.{name.replace('.', '/')}.rp_filter=2",
            )
        else:
            yield ok(label, f"{effective} (the larger of all and {name}): no harm to the diversion")


def _outbound_interfaces(seen: Examined) -> set[str]:
    outbounds = seen.config.outbounds.values() if seen.config else ()
    return {
        one.interface
        for one in outbounds
        if isinstance(one, Socks5Outbound | DirectOutbound) and one.interface
    }


def valid_mark(seen: Examined) -> Iterator[Check]:
    """With it a client is looked up with the diversion's mark; see ``gateway.marks``."""
    value = seen.sysctl("net.ipv4.conf.all.src_valid_mark")
    if value == "1":
        yield ok("src_valid_mark", "1; our first ip rule keeps the diversion working with it")
    elif value is not None:
        yield ok("src_valid_mark", value)


def bridges(seen: Examined) -> Iterator[Check]:
    """Bridged packets that pass iptables are handled before they are routed: TPROXY loses them."""
    behind = sorted(set(seen.lan) & seen.readings.bridges)
    for key in ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"):
        value = seen.sysctl(key)
        if value is None:
            continue
        if value == "1" and behind:
            yield fail(
                key,
                f"is 1 and {', '.join(behind)} is a bridge: TPROXY loses its clients' packets",
                f"sysctl -w {key}=0, or set inbound.tcp: redirect",
            )
        else:
            yield ok(key, f"is {value}; no LAN interface is a bridge" if value == "1" else "is 0")


def router_advertisements(seen: Examined) -> Iterator[Check]:
    """A host that forwards ignores router advertisements, unless accept_ra is 2."""
    forwards = seen.sysctl("net.ipv6.conf.all.forwarding") not in (None, "0")
    for route in seen.facts.default_routes:
        if not (route.family == "ipv6" and route.from_ra):
            continue
        name = f"accept_ra {route.interface}"
        value = seen.interface_sysctl("ipv6", route.interface, "accept_ra")
        if forwards and value != "2":
            key = f"net.ipv6.conf.{route.interface.replace('.', '/')}.accept_ra"
            yield fail(
                name,
                f"{value} while forwarding: the IPv6 default route will expire",
                f"sysctl -w {key}=2",
            )
        else:
            yield ok(name, f"{value}; the default route of {route.interface} is learnt and kept")


CHECKS = (
    privileges,
    software,
    features,
    ipv6,
    file_limit,
    forwarding,
    reverse_path,
    valid_mark,
    bridges,
    router_advertisements,
)
