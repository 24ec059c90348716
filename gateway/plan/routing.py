"""What a plan asks of routing: the ladder of ip rules, the local table, and sysctls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from gateway.config.schema import Lan
from gateway.marks import (
    PRIORITY_DIVERT,
    PRIORITY_DIVERT_OWN,
    PRIORITY_FIRST,
    PRIORITY_NOP,
    PRIORITY_SOURCE_END,
    PRIORITY_TUN,
    PRIORITY_VALIDATE,
    TABLE_TPROXY,
    TABLE_TUN,
    Mark,
)
from gateway.plan.addresses import EVERYTHING, Family
from gateway.plan.capture import Capture, capture_routes
from gateway.plan.host import HostFacts
from gateway.plan.model import IpRule, Route, Sysctl
from gateway.plan.shape import Shape


def ip_rules(shape: Shape, host: HostFacts) -> tuple[IpRule, ...]:
    """The ladder, per family; see ``gateway.marks`` for why each rung is where it is.

    As a whole it stands in front of the rules of others: one that is added without a priority,
    as wg-quick does it, gets the first place of all (``fib_default_rule_pref`` of
    net/core/fib_rules.c), and would take diverted packets along into its tunnel.
    """
    down = shift(host)
    tun = tuple(_tun_rules(shape, PRIORITY_TUN - down))
    if not _needs_local_table(shape):
        return tun
    divert, own = shape.marks.divert, shape.marks.divert_own
    end = PRIORITY_NOP - down
    rules = []
    for family in shape.families:
        rules += [
            IpRule(PRIORITY_VALIDATE - down, family, "goto", goto=end, mark=divert, iif="lo"),
            IpRule(PRIORITY_DIVERT - down, family, "lookup", table=TABLE_TPROXY, mark=divert),
        ]
        if shape.own and shape.by_tproxy:
            priority = PRIORITY_DIVERT_OWN - down
            rules.append(IpRule(priority, family, "lookup", table=TABLE_TPROXY, mark=own, iif="lo"))
        rules.append(IpRule(end, family, "nop"))
    return (*rules, *tun)


def _tun_rules(shape: Shape, priority: int) -> Iterator[IpRule]:
    """By the interface that a packet came in on.

    Packets that come out of the device carry the mark too, and reverse-path validation looks
    up clients with it where another program sets ``src_valid_mark``: neither may end in there.
    Own flows that a route has led into the device have its address. Once it leads them there
    no more, nobody would answer them elsewhere; what has another mark, though, has been led
    past it.
    """
    if shape.tun is None:
        return
    into = IpRule(priority, Family.V4, "lookup", table=TABLE_TUN)
    for name in shape.tun.senders:
        for family in shape.families:
            yield replace(into, family=family, mark=shape.marks.tun, iif=name)
    for family in shape.families:
        source, unmarked = shape.tun.addresses[family], Mark(0, shape.marks.mask)
        yield replace(into, family=family, mark=unmarked, iif="lo", source=source)


def shift(host: HostFacts) -> int:
    """By how much the ladder stands below its priorities, so that it ends before all others."""
    if host.first_rule is None or host.first_rule > PRIORITY_SOURCE_END:
        return 0
    height = PRIORITY_SOURCE_END - PRIORITY_FIRST
    return PRIORITY_FIRST - max(1, host.first_rule - height - 1)


def routes(shape: Shape) -> tuple[Route, ...]:
    """Everything is local in our table: a diverted packet is delivered, not forwarded.

    And in the TUN's table, everything is behind the device, or nowhere.
    """
    tun: tuple[Route, ...] = ()
    if shape.tun is not None:
        # Who fails open is not marked once we are dead; who has the mark must not get past.
        closed = not shape.fail_open or bool(shape.otherwise)
        everything = Capture(shape.tun.device, tuple(EVERYTHING.values()), closed=closed)
        tun = capture_routes(everything, shape.families, TABLE_TUN)
    if not _needs_local_table(shape):
        return tun
    local = tuple(Route(f, "local", EVERYTHING[f], "lo", TABLE_TPROXY) for f in shape.families)
    return (*local, *tun)


def loose_sysctls(host: HostFacts) -> tuple[Sysctl, ...]:
    """Beside a TUN that takes the default route: answers to our marked packets are let in.

    Strict validation looks for the sender without that mark, and finds it behind the TUN. The
    larger of ``all`` and an interface's own value counts (ip-sysctl.rst, ``rp_filter``).
    """
    everywhere = host.sysctls.get(_of_interface("ipv4", "all", "rp_filter"), "0")
    uplinks = sorted({r.interface for r in host.default_routes if r.family == "ipv4"})
    keys = [_of_interface("ipv4", name, "rp_filter") for name in uplinks if name]
    return tuple(
        Sysctl(key, "2", "answers to the gateway come by an uplink that only its mark leads to")
        for key in keys
        if max(everywhere, host.sysctls.get(key, "0")) in ("1", "2")
    )


def sysctls(lan: Lan, host: HostFacts) -> tuple[Sysctl, ...]:
    """Forwarding, and what turning it on would otherwise break; in the order to set them.

    A dot in an interface's name is written ``/``, as sysctl(8) has it.
    """
    if not lan.interfaces or not lan.forwarding:
        return ()
    wanted = [Sysctl("net.ipv4.ip_forward", "1", "flows sent direct are forwarded")]
    one_armed = sorted({r.interface for r in host.default_routes} & set(lan.interfaces))
    if one_armed:
        # The kernel sends redirects where either of "all" and the interface's own says so.
        wanted.append(
            Sysctl("net.ipv4.conf.all.send_redirects", "0", "a redirect leads clients past us")
        )
    wanted += [
        Sysctl(_of_interface("ipv4", name, "send_redirects"), "0", "it leads to the same router")
        for name in one_armed
    ]
    if not host.has("ipv6"):
        return tuple(wanted)
    learnt = sorted({r.interface for r in host.default_routes if r.from_ra})
    wanted += [
        Sysctl(
            _of_interface("ipv6", name, "accept_ra"), "2", "a forwarding host ignores RAs otherwise"
        )
        for name in learnt
    ]
    wanted.append(Sysctl("net.ipv6.conf.all.forwarding", "1", "flows sent direct are forwarded"))
    return tuple(wanted)


def ping_sysctls(host: HostFacts) -> tuple[Sysctl, ...]:
    """That this process may open ping sockets, beside those who may already (icmp(7)).

    The setting of IPv4 holds for IPv6, too (``ping_init_sock`` of net/ipv4/ping.c).
    """
    now = host.sysctls.get(_PING_GROUPS, "").split()
    if len(now) != 2:
        return ()
    first, last = map(int, now)
    if first > last:  # nobody
        first = last = host.group
    groups = f"{min(first, host.group)} {max(last, host.group)}"
    return (Sysctl(_PING_GROUPS, groups, "echo requests leave by ping sockets"),)


_PING_GROUPS: Final = "net.ipv4.ping_group_range"


def _needs_local_table(shape: Shape) -> bool:
    return shape.shortcut or bool((shape.lan or shape.own) and shape.by_tproxy)


def _of_interface(family: str, interface: str, key: str) -> str:
    return f"net.{family}.conf.{interface.replace('.', '/')}.{key}"
