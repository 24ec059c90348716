"""Checks for other programs that use the same numbers, or stand in the way of our packets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gateway.cli.examination import Check, Examined, fail, ok, warn
from gateway.kernel.readings import ForeignDrop, ForeignRule
from gateway.marks import (
    DIVERTING_TABLES,
    PRIORITY_FIRST,
    PRIORITY_LAST,
    Mark,
)


def priorities(seen: Examined) -> Iterator[Check]:
    """Nobody else may stand between the rungs of our ladder of ip rules."""
    ours = range(PRIORITY_FIRST, PRIORITY_LAST + 1)
    taken = [rule for rule in seen.readings.rules if rule.priority in ours]
    for rule in taken:
        yield fail(
            "ip rule priorities",
            f"a foreign {rule.family} rule has priority {rule.priority},"
            f" between ours ({PRIORITY_FIRST} to {PRIORITY_LAST})",
            f"give it another: ip rule del pref {rule.priority} removes it",
        )
    if not taken:
        yield ok("ip rule priorities", f"{PRIORITY_FIRST} to {PRIORITY_LAST} are free")


def mark_bits(seen: Examined) -> Iterator[Check]:
    """Two programs that use the same bits of a mark divert each other's packets."""
    ours = Mark(0, seen.marks.mask)
    clashing = [rule for rule in seen.readings.rules if rule.mark and _overlap(rule.mark, ours)]
    for rule in clashing:
        yield fail(
            "packet marks",
            f"{_describe(rule)} uses bits of our mark ({ours.mask:#010x})",
            "set marks.base to four bits that nobody uses, such as 0x10000",
        )
    if not clashing:
        yield ok("packet marks", f"no ip rule but ours uses the bits {ours.mask:#010x}")


def _overlap(theirs: Mark, ours: Mark) -> bool:
    # A rule without a mask compares all bits (wg-quick's `not fwmark 51820`): it is no claim
    # on our bits unless its value has some of them.
    claimed = theirs.value if theirs.mask == 0xFFFF_FFFF else theirs.mask
    return bool(claimed & ours.mask)


def tables(seen: Examined) -> Iterator[Check]:
    """Our routing tables lead all that looks there to ourselves: nobody else may."""
    rules = [rule for rule in seen.readings.rules if rule.table in DIVERTING_TABLES]
    for rule in rules:
        yield fail(
            "routing tables",
            f"{_describe(rule)} looks up table {rule.table}, which is ours",
            f"give that program another table: ip rule del pref {rule.priority} removes the rule",
        )
    for route in seen.readings.routes:
        yield fail(
            "routing tables",
            f"a foreign {route.family} route {route.destination} is in our table {route.table}",
            f"ip route del {route.destination} table {route.table}",
        )
    if not rules and not seen.readings.routes:
        ours = ", ".join(map(str, sorted(DIVERTING_TABLES)))
        yield ok("routing tables", f"nobody else uses tables {ours}")


def _describe(rule: ForeignRule) -> str:
    mark = f" fwmark {rule.mark}" if rule.mark else ""
    return f"the {rule.family} rule at priority {rule.priority}{mark}"


def input_firewall(seen: Examined) -> Iterator[Check]:
    """Diverted packets arrive at this machine's own input firewall with their original port."""
    drops = [drop for drop in seen.readings.drops if drop.hook == "input"]
    inbound = seen.config.inbound if seen.config else None
    if not drops:
        yield ok("input firewall", "no foreign chain refuses packets")
    elif inbound and inbound.host_firewall == "leave":
        yield fail(
            "input firewall",
            f"{_names(drops)} may refuse packets, diverted ones too",
            f"set inbound.host_firewall: allow, or accept packets with mark {seen.marks.divert}",
        )
    elif inbound and inbound.backend == "nftables" and any(drop.legacy for drop in drops):
        yield fail(
            "input firewall",
            f"{_names(drops)}: a rule of the nftables backend cannot overrule it",
            f"set inbound.backend: iptables, or accept packets with mark {seen.marks.divert}",
        )
    else:
        yield ok(
            "input firewall",
            f"{_names(drops)} may refuse packets; the gateway adds an accept rule for diverted"
            " ones (inbound.host_firewall: allow)",
        )


def forward_firewall(seen: Examined) -> Iterator[Check]:
    """Flows sent direct are forwarded; Docker sets the policy of FORWARD to drop."""
    drops = [drop for drop in seen.readings.drops if drop.hook == "forward"]
    if drops:
        lan = seen.lan[0] if seen.lan else "LAN"
        yield warn(
            "forward firewall",
            f"{_names(drops)} drops by policy: what rules send direct must be accepted there",
            f"accept it: iptables -I DOCKER-USER -i {lan} -j ACCEPT (Docker),"
            f" ufw route allow in on {lan} (ufw)",
        )
    else:
        yield ok("forward firewall", "no foreign chain drops by policy")


def _names(drops: Iterable[ForeignDrop]) -> str:
    return ", ".join(drop.where for drop in drops)


def listener_port(seen: Examined) -> Iterator[Check]:
    """The listener's port must be free, or held by the running gateway."""
    foreign = [
        one
        for one in seen.readings.listeners
        if seen.gateway_process is None or seen.gateway_process not in (one.process, one.parent)
    ]
    for one in foreign:
        owner = f"{one.command} (process {one.process})" if one.process else "another program"
        yield fail(
            f"port {one.port}",
            f"{owner} listens on {one.address}",
            "stop it, or set inbound.port to a free one",
        )
    if not foreign:
        used = "held by the running gateway" if seen.readings.listeners else "free"
        yield ok(f"port {seen.port}", used)


def leftovers(seen: Examined) -> Iterator[Check]:
    """Kernel state of ours without a gateway: of a dead run, or of ``gateway up``."""
    if seen.gateway_process is not None:
        yield ok("leftovers", f"the gateway runs (process {seen.gateway_process})")
    elif seen.leftovers is None:
        yield warn("leftovers", "not to be seen", "run it as root")
    elif seen.leftovers:
        yield warn(
            "leftovers",
            f"no gateway runs, but the kernel has {'; '.join(seen.leftovers)}",
            "gateway down",
        )
    else:
        yield ok("leftovers", "nothing of ours is in the kernel")


CHECKS = (
    priorities,
    mark_bits,
    tables,
    input_firewall,
    forward_firewall,
    listener_port,
    leftovers,
)
