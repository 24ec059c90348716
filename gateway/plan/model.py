"""The kernel state we want, as values. Nothing here knows nft, iptables or netlink.

A ``Plan`` is everything the gateway adds to a machine. Renderers turn it into
text, backends into kernel objects; both refuse what they cannot say, so the
vocabulary is small: what each type below means is all that a backend must do.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2s
from typing import Literal

from gateway.marks import TAG_PREFIX, Mark
from gateway.plan.addresses import Family, Network
from gateway.plan.matches import Match
from gateway.plan.verdicts import Verdict


class Backend(StrEnum):
    """The firewall that carries a plan."""

    NFTABLES = "nftables"
    IPTABLES = "iptables"


@dataclass(frozen=True, slots=True)
class NftRule:
    """One netfilter rule. ``family`` None: both. ``name`` is stable and unique in its chain."""

    name: str
    verdict: Verdict
    matches: tuple[Match, ...] = ()
    family: Family | None = None

    @property
    def tag(self) -> str:
        """The comment that marks the rule as ours: its name and a digest of what it says.

        Two rules with the same tag say the same, so an installed ruleset can be
        compared with a plan by its comments alone, on both backends.
        """
        digest = blake2s(
            repr((self.matches, self.verdict, self.family)).encode(), digest_size=4
        ).hexdigest()
        return f"{TAG_PREFIX}{self.name}:{digest}"


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a base chain hangs.

    ``table`` is the iptables table; in nftables, ``mangle`` at ``output`` is a
    ``route`` chain, ``nat`` a ``nat`` chain, all else ``filter``. ``priority`` is
    nftables' (iptables has fixed ones; our jump stands first in the built-in chain).
    """

    point: Literal["prerouting", "output", "forward", "input"]
    table: Literal["mangle", "nat", "filter"]
    priority: int


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain in order. ``name`` is lower case; iptables shows it as ``GATEWAY_<NAME>``.

    A chain without a hook belongs to the table of the chains that jump to it
    (``table`` says which, for iptables).
    """

    name: str
    table: Literal["mangle", "nat", "filter"]
    rules: tuple[NftRule, ...]
    hook: Hook | None = None


@dataclass(frozen=True, slots=True)
class AddressSet:
    """A named set of prefixes, ``gw_...``.

    ``timeout_s``: elements expire unless refreshed (the dead-man set). Such a set starts
    alive, so that a reload by a running gateway diverts without a gap; the running
    gateway keeps refreshing the elements named here.
    """

    name: str
    family: Family
    elements: Collection[Network]
    timeout_s: int | None = None


@dataclass(frozen=True, slots=True)
class IpRule:
    """A policy-routing rule (ip-rule(8)), tagged with our protocol number.

    ``suppress_prefixlen``: a route that was found counts only if its prefix is longer.
    ``oif``: of sockets that are bound to that device; ``realm``: what found routes are tagged.
    """

    priority: int
    family: Family
    action: Literal["lookup", "goto", "nop", "unreachable"]
    table: int | None = None
    goto: int | None = None
    mark: Mark | None = None
    iif: str | None = None
    source: Network | None = None
    uid: int | None = None
    suppress_prefixlen: int | None = None
    oif: str | None = None
    realm: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A route (ip-route(8)), tagged with our protocol number.

    ``metric`` None: the kernel's own choice. ``throw`` goes on with the next ip rule.
    """

    family: Family
    kind: Literal["local", "unicast", "unreachable", "throw"]
    destination: Network
    device: str
    table: int
    via: str | None = None
    metric: int | None = None

    @property
    def place(self) -> tuple[Family, Network, int, int | None]:
        """What the kernel has only one route for."""
        return self.family, self.destination, self.table, self.metric


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A kernel setting by its dotted name, and why it is needed."""

    key: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class RulePlacement:
    """Where one rule of the owner is decided, for ``gateway plan``."""

    index: int
    rule: str
    place: Literal["kernel", "listener", "both"]
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All kernel state that is ours.

    ``accept_input``: packets with these marks must pass this machine's own input firewall;
    ``accept_forward``: and with these, what it forwards.
    How to get them through another program's chains is the backend's matter.
    """

    backend: Backend
    chains: tuple[Chain, ...] = ()
    sets: tuple[AddressSet, ...] = ()
    ip_rules: tuple[IpRule, ...] = ()
    routes: tuple[Route, ...] = ()
    sysctls: tuple[Sysctl, ...] = ()
    accept_input: tuple[Mark, ...] = ()
    accept_forward: tuple[Mark, ...] = ()
    placements: tuple[RulePlacement, ...] = field(default=(), compare=False)
