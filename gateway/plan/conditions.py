"""What a rule asks, in terms of what the kernel can ask of a packet.

Not everything can be known there. ``Doubt`` stands for what takes the gateway itself; the
rest of the expression is exact, so a packet for which it does not hold need not be asked
about any further.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Final, NamedTuple

from gateway.plan.address_sets import AddressSets, of_family
from gateway.plan.addresses import Family, Network
from gateway.plan.matches import FromMac, InInterface, Match, OwnedBy, Ports, Transport, WithDscp
from gateway.policy.prefixes import interval
from gateway.policy.rule import Condition, Destinations
from gateway.policy.sets.intervals import IntervalSet
from gateway.policy.sets.networks import CompactNetworks

#: A larger rule set is asked by the gateway: for each prefix nftables takes 15 µs of CPU and
#: 500 bytes while it is loaded, on a machine that may have little of both.
SET_LIMIT: Final = 1 << 18
#: Sets with more intervals of addresses are written out only when they are loaded.
FEW_INTERVALS: Final = 1024


class Variant(NamedTuple):
    """Matches, all of which must hold, for packets of one family, or of both (None)."""

    family: Family | None
    matches: tuple[Match, ...]


@dataclass(frozen=True, slots=True)
class Test:
    """Holds where one of the variants does, of which there is at most one for a family."""

    variants: tuple[Variant, ...]


@dataclass(frozen=True, slots=True)
class Doubt:
    """The kernel cannot know. ``keys`` of the rule, as they are written, say why."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class All:
    """Every part must hold."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One of the choices must hold."""

    choices: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The inner expression must not hold."""

    inner: Expression


Expression = Test | Doubt | All | AnyOf | Not

ALWAYS: Final = Test((Variant(None, ()),))
NEVER: Final = Test(())


class Packets(NamedTuple):
    """Which packets are asked about: ``own`` of this machine, or of the LAN."""

    own: bool
    families: tuple[Family, ...]


def split(asked: Condition, packets: Packets, sets: AddressSets) -> tuple[Test, All]:
    """One test that must hold, and what must hold besides.

    Sets that the expression refers to are added to ``sets``.
    """
    return _test(asked, packets, sets), All(tuple(_others(asked, packets, sets)))


def doubts(expression: Expression) -> tuple[str, ...]:
    """The keys of which the kernel cannot know what they ask, each once."""
    return tuple(dict.fromkeys(_doubts(expression)))


def _doubts(expression: Expression) -> Iterator[str]:
    match expression:
        case Doubt(keys):
            yield from keys
        case All(inner) | AnyOf(inner):
            for each in inner:
                yield from _doubts(each)
        case Not(negated):
            yield from _doubts(negated)


def _expression(asked: Condition, packets: Packets, sets: AddressSets) -> Expression:
    test, others = split(asked, packets, sets)
    return All((test, *others.parts)) if others.parts else test


def _test(asked: Condition, packets: Packets, sets: AddressSets) -> Test:
    """The fields of which each is one match of the kernel's."""
    # What this machine sends has arrived on no interface; what others send has no owner here.
    lan_only = asked.interfaces or asked.macs or asked.hostnames
    own_only = asked.uids or asked.gids or asked.cgroups
    if own_only if not packets.own else lan_only:
        return NEVER
    common: list[Match] = []
    if asked.interfaces:
        common.append(InInterface(asked.interfaces))
    if asked.macs and not asked.hostnames:
        common.append(FromMac(asked.macs))
    if asked.protocols:
        common.append(Transport(asked.protocols))
    if asked.source_ports:
        common.append(Ports("source", asked.source_ports))
    if asked.ports:
        common.append(Ports("destination", asked.ports))
    if asked.uids:
        common.append(OwnedBy("uid", asked.uids))
    if asked.gids:
        common.append(OwnedBy("gid", asked.gids))
    if asked.source is None and asked.destination is None and not asked.dscps:
        return Test((Variant(None, tuple(common)),))
    return Test(tuple(_of_families(asked, common, packets, sets)))


def _of_families(
    asked: Condition, common: Sequence[Match], packets: Packets, sets: AddressSets
) -> Iterator[Variant]:
    for family in packets.families:
        sides = [of_family(side or (), family) for side in (asked.source, asked.destination)]
        if any(
            side is not None and not members
            for side, members in zip((asked.source, asked.destination), sides, strict=True)
        ):
            continue  # asks for addresses of the other family only
        dscp = (WithDscp(asked.dscps),) if asked.dscps else ()
        addresses = (*sets.match("source", sides[0]), *sets.match("destination", sides[1]))
        yield Variant(family, (*common, *addresses, *dscp))


def _others(asked: Condition, packets: Packets, sets: AddressSets) -> Iterator[Expression]:
    """What takes more than one test, or more than the kernel knows."""
    for group in asked.destinations:
        yield _in_group(group, packets, sets)
    if asked.hostnames:
        by_name = Doubt(("device",))
        macs = Test((Variant(None, (FromMac(asked.macs),)),))
        yield AnyOf((macs, by_name)) if asked.macs else by_name
    keys = tuple(
        key
        for key, value in (
            ("cgroup", asked.cgroups),
            ("domain", asked.names),
            ("sniffed", asked.sniffed),
            ("country", asked.countries),
            ("asn", asked.asns),
            ("time", asked.times),
        )
        if value
    )
    if keys:
        yield Doubt(keys)
    for inner in asked.all_of:
        yield _expression(inner, packets, sets)
    if asked.any_of:
        yield AnyOf(tuple(_expression(inner, packets, sets) for inner in asked.any_of))
    for inner in asked.none_of:
        yield Not(_expression(inner, packets, sets))


def _in_group(group: Destinations, packets: Packets, sets: AddressSets) -> Expression:
    """The destination is in one of these prefixes or sets; a set may hold names too."""
    doubt = Doubt(("rule_set",))
    if any(each.prefixes and len(each.prefixes) > SET_LIMIT for each in group.sets):
        return doubt  # before any of them is written out
    members = {family: _networks(group, family) for family in packets.families}
    if sum(map(len, members.values())) > SET_LIMIT:
        return doubt
    inside = Test(
        tuple(
            Variant(family, (sets.set_match("destination", its),))
            for family, its in members.items()
            if its
        )
    )
    return AnyOf((inside, doubt)) if any(s.domains for s in group.sets) else inside


@lru_cache(maxsize=16)
def _networks(group: Destinations, family: Family) -> Collection[Network]:
    """All prefixes of a family.

    Remembered: a plan asks several times, and each asks for what may be half a million.
    """
    known = [each.prefixes for each in group.sets if each.prefixes]
    if len(known) == 1 and isinstance(known[0], IntervalSet) and not group.networks:
        inside = known[0]
    else:
        intervals = (each.intervals() for each in known)
        inside = IntervalSet.of([*map(interval, group.networks), *chain(*intervals)])
    its = inside.of_version(family.version)
    return CompactNetworks(its) if len(its) > FEW_INTERVALS else tuple(its.networks())
