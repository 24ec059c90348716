"""Checks of the configuration against the machine it is for."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.cli.examination import Check, Examined, fail, ok, warn
from gateway.errors import CapabilityError, ConfigError
from gateway.kernel.guard import Outcome
from gateway.plan.backend import choose_backend
from gateway.plan.capture_plan import planned_capture, require_capture


def configuration(seen: Examined) -> Iterator[Check]:
    """The file loads."""
    error = seen.config_error
    if error is None:
        yield ok("configuration", "loads without a problem")
    elif isinstance(error, ConfigError):
        first, *others = error.problems
        more = f" (and {len(others)} more)" if others else ""
        cure = first.cure if first.cure and not others else "gateway check lists every problem"
        yield fail("configuration", f"{str(first).splitlines()[0]}{more}", cure)
    else:
        yield fail("configuration", str(error), error.hint or "gateway init writes a first one")


def lan_interfaces(seen: Examined) -> Iterator[Check]:
    """Each LAN interface exists, is up and has an address."""
    known = {interface.name: interface for interface in seen.facts.interfaces}
    for name in seen.lan:
        label = f"interface {name}"
        interface = known.get(name)
        if interface is None:
            there = ", ".join(sorted(known.keys() - {"lo"})) or "none"
            yield fail(label, "does not exist", f"set lan.interfaces to one of: {there}")
        elif not interface.up:
            yield warn(label, "is down", f"ip link set {name} up")
        elif not interface.addresses:
            yield warn(
                label,
                "has no address: no LAN machine can use it as its gateway",
                f"ip addr add ADDRESS/PREFIX dev {name}",
            )
        else:
            yield ok(label, ", ".join(str(address) for address in interface.addresses))


def default_route(seen: Examined) -> Iterator[Check]:
    """Without one, only what is near can be reached."""
    routes = seen.facts.default_routes
    if routes:
        shown = [f"{r.family} {f'via {r.via} ' if r.via else ''}dev {r.interface}" for r in routes]
        yield ok("default route", ", ".join(shown))
    else:
        yield warn("default route", "none", "ip route add default via ROUTER dev INTERFACE")


def backend(seen: Examined) -> Iterator[Check]:
    """Which firewall carries our rules, and why."""
    wanted = seen.config.inbound.backend if seen.config else "auto"
    try:
        chosen, reason = choose_backend(
            wanted, seen.facts, nfqueue=seen.nfqueue, transparent=seen.transparent
        )
    except CapabilityError as error:
        yield fail("backend", f"{wanted}: {error}", error.hint)
    else:
        yield ok("backend", f"{wanted} takes {chosen}: {reason}")


def loop_guard(seen: Examined) -> Iterator[Check]:
    """No outbound's packets enter the diversion again, and each has a way out.

    One of several ways without a route is no fault: a machine without IPv6 has none there.
    """
    if seen.path_error is not None:
        yield fail("loop guard", str(seen.path_error), seen.path_error.hint)
    usable = {path.egress.outbound for path in seen.paths if path.outcome is Outcome.CLEAR}
    for path in seen.paths:
        label = f"outbound {path.egress.outbound}"
        if not path.ok:
            yield fail(label, path.reason, path.hint)
        elif path.outcome is Outcome.CLEAR:
            yield ok(label, f"{path.egress.destination} by {path.egress.how}: {path.route}")
        elif path.egress.outbound in usable:
            yield ok(label, path.reason)
        else:
            yield warn(label, path.reason, path.hint)


def capture(seen: Examined) -> Iterator[Check]:
    """What the TUN takes by routes is nobody's whom it must not be taken from."""
    config = seen.config
    if config is None:
        return
    ways = [path.egress for path in seen.paths]
    taken = planned_capture(config, ways)
    if taken is None:
        return
    try:
        require_capture(config, ways, seen.facts)
    except CapabilityError as error:
        yield fail("tun.capture", str(error), error.hint)
        return
    shown = ", ".join(map(str, taken.prefixes))
    end = "then unreachable" if taken.closed else "open when the gateway is dead"
    yield ok("tun.capture", f"{shown} into {taken.device}, by {taken.by}; {end}")


def lookups(seen: Examined) -> Iterator[Check]:
    """No server's name is looked up by the outbound that needs it."""
    for lookup in seen.lookups:
        judge = fail if lookup.certain else warn
        yield judge(f"outbound {lookup.outbound}", lookup.reason, lookup.hint)


def fast_open(seen: Examined) -> Iterator[Check]:
    """Data in a SYN takes the kernel's consent (ip-sysctl.rst, ``tcp_fastopen``: bit 0)."""
    outbounds = seen.config.outbounds if seen.config else {}
    users = [name for name, one in outbounds.items() if one.type == "socks5" and one.fast_open]
    key = "net.ipv4.tcp_fastopen"
    value = seen.sysctl(key)
    if not users or value is None:
        return
    if int(value, 0) & 1:
        yield ok(key, f"is {value}: it lets {', '.join(users)} put data into the SYN")
    else:
        yield warn(
            key,
            f"is {value}: fast_open of {', '.join(users)} has no effect",
            f"sysctl -w {key}={int(value, 0) | 1}",
        )


CHECKS = (
    configuration,
    lan_interfaces,
    default_route,
    backend,
    loop_guard,
    capture,
    lookups,
    fast_open,
)
