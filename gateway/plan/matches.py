"""What a netfilter rule can ask of a packet; all of a rule's matches must hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gateway.flow import Protocol
from gateway.marks import Mark
from gateway.plan.addresses import Network


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
class LastHop:
    """Its TTL, or hop limit, is 1; only in a rule of one family.

    No router may forward such a packet. The kernel tells its sender instead (RFC 1812 section
    5.3.1, RFC 8200 section 3).
    """


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
    """A transparent socket takes this packet (TCP), or has sent what this ICMP error is about.

    Other than a wildcard listener.
    """


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
    | LastHop
    | OwnedBy
    | MarkIs
    | DestinationType
    | ReplyDirection
    | Untracked
    | TransparentSocket
    | InControlGroup
)
