"""What a plan needs to know of the machine it is for; read by ``gateway.kernel.probe``."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface
from typing import Literal


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface of this machine."""

    name: str
    index: int
    up: bool
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A default route of the main table."""

    family: Literal["ipv4", "ipv6"]
    interface: str
    via: str | None = None
    from_ra: bool = False


@dataclass(frozen=True, slots=True)
class Feature:
    """Whether the kernel and tools have something; ``detail`` is the evidence."""

    available: bool
    detail: str


@dataclass(frozen=True, slots=True)
class HostFacts:
    """One reading of the machine.

    ``features`` by name: ``nftables``, ``nft-tproxy``, ``nft-socket``, ``iptables``
    (python-iptables works), ``iptables-tproxy``, ``ipset``, ``ipv6``. ``sysctls`` by
    dotted name, only those that exist. ``first_rule``: the lowest priority among the ip rules
    of others, those of priority 0 (the table ``local``) left out; None where there is none.
    """

    interfaces: tuple[Interface, ...] = ()
    default_routes: tuple[DefaultRoute, ...] = ()
    features: dict[str, Feature] = field(default_factory=dict)
    sysctls: dict[str, str] = field(default_factory=dict)
    first_rule: int | None = None

    @property
    def addresses(self) -> frozenset[str]:
        """Every address of this machine, as canonical text."""
        return frozenset(str(a.ip) for i in self.interfaces for a in i.addresses)

    def has(self, feature: str) -> bool:
        """Whether a feature is known to be available."""
        found = self.features.get(feature)
        return found is not None and found.available
