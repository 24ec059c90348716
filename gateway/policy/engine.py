"""The policy: which rule a flow meets first, and so which outbound it takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gateway.decision import Decision
from gateway.flow import FlowFacts, Protocol
from gateway.policy.matchers import Axis, Bounds, Words
from gateway.policy.prefixes import Network, PrefixSet, address_number

PortRanges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """A rule with every name resolved; all that a plan or an engine needs of it.

    ``source`` and ``destination`` are shortest lists of prefixes; None is any address, an
    empty tuple is none at all (the rule never matches). Empty ``ports``, ``source_ports``,
    ``protocols`` and ``interfaces`` are any; port ranges are inclusive, sorted and apart.
    A rule with ports has protocols, and ICMP is not among them.
    """

    index: int
    text: str
    outbound: str
    source: tuple[Network, ...] | None = None
    destination: tuple[Network, ...] | None = None
    ports: PortRanges = ()
    source_ports: PortRanges = ()
    protocols: tuple[Protocol, ...] = ()
    interfaces: tuple[str, ...] = ()

    @property
    def is_catch_all(self) -> bool:
        """Whether it matches every flow."""
        asked = (self.ports, self.source_ports, self.protocols, self.interfaces)
        return self.source is None and self.destination is None and not any(asked)


class Policy:
    """Rules in order, the last of which matches everything. Immutable."""

    __slots__ = (
        "_decisions",
        "_destinations",
        "_interfaces",
        "_ports",
        "_protocols",
        "_source_ports",
        "_sources",
        "needs_interface",
        "rules",
    )

    def __init__(self, rules: Iterable[CompiledRule]) -> None:
        """Raises ``ValueError`` where the last rule is not a catch-all."""
        self.rules = tuple(rules)
        if not self.rules or not self.rules[-1].is_catch_all:
            raise ValueError("the last rule of a policy must match everything")
        #: Whether a rule asks for the interface, which costs a look-up per flow to know.
        self.needs_interface = any(rule.interfaces for rule in self.rules)
        self._decisions = tuple(Decision(r.outbound, r.index, r.text) for r in self.rules)
        self._sources = Axis.of([_address_bounds(rule.source) for rule in self.rules])
        self._destinations = Axis.of([_address_bounds(rule.destination) for rule in self.rules])
        self._ports = Axis.of([_port_bounds(rule.ports) for rule in self.rules])
        self._source_ports = Axis.of([_port_bounds(rule.source_ports) for rule in self.rules])
        self._protocols = Words.of([rule.protocols for rule in self.rules])
        self._interfaces = Words.of([rule.interfaces for rule in self.rules])

    def decide(self, facts: FlowFacts) -> Decision:
        """The outbound of the first rule that matches.

        Addresses are canonical text, IPv4-mapped ones written as IPv4. Raises
        ``ValueError`` where one is a name.
        """
        protocol, (source, source_port), (destination, port), interface = facts
        matching = (
            self._sources.rules_at(address_number(source))
            & self._destinations.rules_at(address_number(destination))
            & self._ports.rules_at(port)
            & self._source_ports.rules_at(source_port)
            & self._protocols.rules_at(protocol)
            & self._interfaces.rules_at(interface)
        )
        return self._decisions[(matching & -matching).bit_length() - 1]


def _address_bounds(networks: tuple[Network, ...] | None) -> Bounds:
    return None if networks is None else PrefixSet.from_networks(networks).bounds


def _port_bounds(ranges: PortRanges) -> Bounds:
    return tuple(bound for first, last in ranges for bound in (first, last + 1)) or None
