"""What a plan needs to know of the machine it is for; read by ``gateway.kernel.probe``."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Literal


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface of this machine.

    ``lasting``: of its addresses those to send from, neither link-local nor tentative,
    deprecated or temporary (RFC 8981). ``has_arp`` False: what is sent by it needs no gateway.
    """

    name: str
    index: int
    up: bool
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    lasting: tuple[IPv4Address | IPv6Address, ...] = ()
    has_arp: bool = True


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A default route of the main table."""

    family: Literal["ipv4", "ipv6"]
    interface: str
    via: str | None = None
    from_ra: bool = False
    metric: int = 0


@dataclass(frozen=True, slots=True)
class Feature:
    """Whether the kernel and tools have something; ``detail`` is the evidence."""

    available: bool
    detail: str


@dataclass(frozen=True, slots=True)
class HostFacts:
    """One reading of the machine.

    ``features`` by name: ``ipv6``, ``legacy-rules`` (others' in legacy iptables), and those of
    ``gateway.plan.backend`` that were looked for. ``sysctls`` by dotted name, only those that
    exist. ``first_rule``: the lowest priority among the ip rules
    of others, those of priority 0 (the table ``local``) left out; None where there is none.
    ``users`` and ``cgroups``: numbers of those that the configuration names and that exist.
    ``group``: as which the gateway runs.
    ``resolvers``: the name servers that this machine asks. ``privileged``: whether what its
    firewalls can do could be asked for.
    """

    interfaces: tuple[Interface, ...] = ()
    default_routes: tuple[DefaultRoute, ...] = ()
    features: dict[str, Feature] = field(default_factory=dict)
    sysctls: dict[str, str] = field(default_factory=dict)
    first_rule: int | None = None
    users: dict[str, int] = field(default_factory=dict)
    cgroups: dict[str, int] = field(default_factory=dict)
    group: int = 0
    resolvers: tuple[str, ...] = ()
    privileged: bool = True

    @property
    def addresses(self) -> frozenset[str]:
        """Every address of this machine, as canonical text."""
        return frozenset(str(a.ip) for i in self.interfaces for a in i.addresses)

    def has(self, feature: str) -> bool:
        """Whether a feature is known to be available."""
        found = self.features.get(feature)
        return found is not None and found.available
