"""A rule with every name resolved: data, which the engine and the kernel's plan both read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Literal
from typing import Protocol as Interface

from gateway.flow import Protocol
from gateway.marks import Mark
from gateway.policy.names import NamePatterns
from gateway.policy.prefixes import Network

PortRanges = tuple[tuple[int, int], ...]

#: Minutes in a week: time runs from Monday 00:00 in the policy's time zone.
WEEK = 7 * 24 * 60


class Prefixes(Interface):
    """The prefixes of a rule set, of any number; asked at most once for a flow."""

    def __len__(self) -> int:
        """How many stretches of addresses."""

    def contains(self, number: int) -> bool:
        """Whether an address, as ``prefixes.address_number`` counts it, is in the set."""

    def intervals(self) -> Iterable[tuple[int, int]]:
        """``(first, behind)`` of each stretch of addresses, as ``address_number`` counts them."""


class Domains(Interface):
    """The names of a rule set, of any number; asked at most once for a flow."""

    def matches(self, name: str) -> bool:
        """Whether a name, as in ``FlowFacts.name``, is in the set."""


@dataclass(frozen=True, slots=True)
class LargeSet:
    """A rule set that rules share and ask one by one, because it is too large to merge.

    It has prefixes, domains, or both; a flow is in it by its address or by its name.
    """

    name: str
    prefixes: Prefixes | None = None
    domains: Domains | None = None


@dataclass(frozen=True, slots=True)
class Destinations:
    """One key's destinations: in one of the prefixes, or in one of the sets."""

    networks: tuple[Network, ...]
    sets: tuple[LargeSet, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What is asked of a flow: every field must hold, and any entry of a field will do.

    ``source`` and ``destination`` are shortest lists of prefixes; None is any address, an
    empty tuple is none at all (it never holds). Every other field that is empty asks
    nothing. Port ranges are inclusive, sorted and apart; with ports there are protocols,
    and ICMP is not among them.

    ``destinations``: further demands on the destination, each of which must hold.
    ``macs`` and ``hostnames`` are one demand: the source is one of these devices.
    ``uids``, ``gids`` and ``cgroups`` (and what is below these) hold for flows of this
    machine only. ``countries`` (ISO 3166, upper case) and ``asns`` are of the destination.
    ``times`` are stretches ``[first, behind)`` of the week in minutes, sorted and apart.
    """

    source: tuple[Network, ...] | None = None
    destination: tuple[Network, ...] | None = None
    destinations: tuple[Destinations, ...] = ()
    ports: PortRanges = ()
    source_ports: PortRanges = ()
    protocols: tuple[Protocol, ...] = ()
    interfaces: tuple[str, ...] = ()
    macs: tuple[str, ...] = ()
    hostnames: tuple[str, ...] = ()
    dscps: tuple[int, ...] = ()
    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    cgroups: tuple[str, ...] = ()
    names: NamePatterns | None = None
    sniffed: tuple[str, ...] = ()
    countries: tuple[str, ...] = ()
    asns: tuple[int, ...] = ()
    times: tuple[tuple[int, int], ...] = ()
    all_of: tuple[Condition, ...] = ()
    any_of: tuple[Condition, ...] = ()
    none_of: tuple[Condition, ...] = ()

    def parts(self) -> Iterator[Condition]:
        """The condition itself, and all those inside it."""
        yield self
        for inner in (*self.all_of, *self.any_of, *self.none_of):
            yield from inner.parts()

    @property
    def asks_name(self) -> bool:
        """Whether some part asks for the destination's name."""
        return any(
            part.names or any(each.domains for group in part.destinations for each in group.sets)
            for part in self.parts()
        )

    @property
    def asks_sniffed(self) -> bool:
        """Whether some part asks for the protocol that the first bytes are of."""
        return any(part.sniffed for part in self.parts())


_KEYS = tuple((field.name, field.default) for field in fields(Condition))


@dataclass(frozen=True, slots=True)
class CompiledRule(Condition):
    """A condition, and what becomes of the flows that it holds for.

    Either ``outbound`` or ``goto`` is written, the other is empty; ``goto`` names a list of
    rules, after whose end the rule behind this one is next. ``mark``, ``log`` and ``sniff``
    as in ``Decision``; ``sniff`` False also means that for this rule, and for the list that
    it leads to, a name that is not known yet is none. ``udp_fallback``: what datagrams get
    where the outbound carries none; ``part`` tells apart the rules that were made of one.
    """

    index: int
    text: str
    outbound: str
    goto: str = ""
    mark: Mark | None = None
    log: bool = False
    sniff: bool = True
    udp_fallback: Literal["reject", "direct", "next"] = "reject"
    part: str = ""

    @property
    def asked(self) -> frozenset[str]:
        """The fields that ask something."""
        return frozenset(name for name, nothing in _KEYS if getattr(self, name) != nothing)

    @property
    def is_catch_all(self) -> bool:
        """Whether it decides every flow."""
        return not self.asked and not self.goto
