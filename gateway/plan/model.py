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
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from gateway.flow import Protocol
from gateway.marks import TAG_PREFIX, Mark

Network = IPv4Network | IPv6Network


class Family(StrEnum):
    """Address family of a rule, a set or a route."""

    V4 = "ipv4"
    V6 = "ipv6"


class Backend(StrEnum):
    """The firewall that carries a plan."""

    NFTABLES = "nftables"
    IPTABLES = "iptables"


# --- matches: all of a rule's matches must hold ---------------------------------------------


@dataclass(frozen=True, slots=True)
class InInterface:
    """Arrived on one of these interfaces (never true in an output chain)."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Transport:
    """Layer-4 protocol is one of these; ICMP is that of the packet's family."""

    protocols: tuple[Protocol, ...]


@dataclass(frozen=True, slots=True)
class Addresses:
    """Source or destination is in one of these prefixes (all of one family)."""

    side: Literal["source", "destination"]
    prefixes: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class InSet:
    """Source or destination is in a set of the plan."""

    side: Literal["source", "destination"]
    name: str
    negate: bool = False


@dataclass(frozen=True, slots=True)
class Ports:
    """Source or destination port is in one of these inclusive ranges; only beside TCP or UDP."""

    side: Literal["source", "destination"]
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class FromMac:
    """Sent by one of these Ethernet addresses (never true in an output chain)."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WithDscp:
    """Carries one of these code points, 0 to 63 (RFC 2474); only in a rule of one family."""

    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OwnedBy:
    """Sent by a socket of one of these users or groups (output chains only)."""

    kind: Literal["uid", "gid"]
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MarkIs:
    """Packet mark (or connmark) equals ``mark.value`` under ``mark.mask``."""

    mark: Mark
    of: Literal["packet", "connection"] = "packet"
    negate: bool = False


@dataclass(frozen=True, slots=True)
class DestinationType:
    """Kernel's address type of the destination (``fib daddr type``, ``addrtype``)."""

    types: tuple[Literal["local", "broadcast", "multicast"], ...]


@dataclass(frozen=True, slots=True)
class ReplyDirection:
    """The packet runs against the direction that opened its connection (conntrack)."""


@dataclass(frozen=True, slots=True)
class Untracked:
    """Conntrack does not follow the packet; among ICMPv6 that is neighbour discovery."""


@dataclass(frozen=True, slots=True)
class TransparentSocket:
    """A transparent socket takes this packet (TCP), other than a wildcard listener."""


@dataclass(frozen=True, slots=True)
class InControlGroup:
    """Sent by a process of this control group (v2), by its path below the root (output hook only).

    ``number`` is the group's own: one that was made anew under the same path is another group,
    which a rule for the old one does not match.
    """

    path: str
    number: int


@dataclass(frozen=True, slots=True)
class OutInterface:
    """Leaves by one of these interfaces (hooks behind routing)."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OfRealm:
    """The route was found by an ip rule that tags with this realm (IPv4 only)."""

    realm: int


Match = (
    InInterface
    | OutInterface
    | OfRealm
    | Transport
    | Addresses
    | InSet
    | Ports
    | FromMac
    | WithDscp
    | OwnedBy
    | MarkIs
    | DestinationType
    | ReplyDirection
    | Untracked
    | TransparentSocket
    | InControlGroup
)


# --- verdicts ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Count:
    """Count the packet and go on with the next rule."""


@dataclass(frozen=True, slots=True)
class Log:
    """Write the packet's addresses to the kernel's log behind ``prefix``, and go on.

    ``prefix`` has at most 28 characters (xt_LOG); at most ten lines a second are written.
    """

    prefix: str


@dataclass(frozen=True, slots=True)
class Accept:
    """End this hook for this packet (as far as this table is concerned)."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Drop it, silently."""


@dataclass(frozen=True, slots=True)
class Return:
    """Back to the calling chain; from a hooked chain: on, untouched."""


@dataclass(frozen=True, slots=True)
class Jump:
    """Into another chain, and come back at its end."""

    chain: str


@dataclass(frozen=True, slots=True)
class Goto:
    """Into another chain, without coming back to this one."""

    chain: str


@dataclass(frozen=True, slots=True)
class SetMark:
    """Set our bits of the packet mark (or connmark), keep the others, go on."""

    mark: Mark
    of: Literal["packet", "connection"] = "packet"


@dataclass(frozen=True, slots=True)
class Tproxy:
    """Hand the packet to the transparent listener of its family (loopback address, ``port``).

    Where no listener is there, the rule does not match (nft) or drops (xt): the rule that
    follows it must be what ``on_failure`` says.
    """

    port: int


@dataclass(frozen=True, slots=True)
class Queue:
    """Let a program decide, by the packet queues ``first`` to ``last``, spread by addresses.

    The packet comes back to the start of its hook with the mark that it was given. Where no
    program listens it is dropped, or with ``bypass`` leaves the whole hook as it came.
    """

    first: int
    last: int
    bypass: bool


@dataclass(frozen=True, slots=True)
class Redirect:
    """Rewrite the destination to this machine, ``port`` (nat hooks only)."""

    port: int


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse with a TCP reset or an ICMP error (forward and output hooks only)."""

    answer: Literal["tcp-reset", "icmp-port-unreachable", "icmp-admin-prohibited"]


Verdict = (
    Count
    | Log
    | Accept
    | Drop
    | Return
    | Jump
    | Goto
    | SetMark
    | Tproxy
    | Queue
    | Redirect
    | Reject
)


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


EMPTY = {backend: Plan(backend) for backend in Backend}
