"""One list of rules: bit vectors leave the rules that may match, and say what is left to ask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gateway.decision import Decision
from gateway.flow import FlowFacts
from gateway.policy.demands import SetDemand, demands_of
from gateway.policy.matchers import Axis, Bounds, Names, Words, mask_of
from gateway.policy.prefixes import Network, PrefixSet, address_number
from gateway.policy.question import Demand, is_member
from gateway.policy.rule import CompiledRule, Destinations, LargeSet, PortRanges

#: Keys of demands that the bit vectors answer for good.
_VECTORED = frozenset(
    {"source", "destination", "port", "source_port", "protocol", "interface", "time"}
)


class Table:
    """A list of rules, prepared to be asked. Immutable.

    ``answers``: what becomes of a flow by the rule of that index, which is a decision or
    the name of the list to go to. ``demands``: all that each rule asks.
    """

    __slots__ = (
        "_destinations",
        "_interfaces",
        "_macs",
        "_named",
        "_names",
        "_ports",
        "_protocols",
        "_rest",
        "_rest_and_names",
        "_sets",
        "_source_ports",
        "_sources",
        "_times",
        "_to_check",
        "answers",
        "demands",
        "rules",
    )

    def __init__(self, rules: Iterable[CompiledRule]) -> None:
        self.rules = rules = tuple(rules)
        self.answers = tuple(
            rule.goto
            or Decision(rule.outbound, rule.index, rule.text, rule.mark, rule.log, rule.sniff)
            for rule in rules
        )
        self.demands = tuple(map(demands_of, rules))
        rests = [tuple(_unvectored(*both)) for both in zip(rules, self.demands, strict=True)]
        self._rest_and_names = tuple(rests)
        self._rest = tuple(
            rest if rule.names is None or rule.names.patterns else _nameless(rest)
            for rule, rest in zip(rules, rests, strict=True)
        )
        self._to_check = mask_of(
            bool(rule.goto or rest) for rule, rest in zip(rules, self._rest, strict=True)
        )
        self._sets = _only_sets(rules, self._rest)
        self._sources = Axis.of([_address_bounds(rule.source) for rule in rules])
        self._destinations = Axis.of([_address_bounds(rule.destination) for rule in rules])
        self._ports = Axis.of([_port_bounds(rule.ports) for rule in rules])
        self._protocols = Words.of([rule.protocols for rule in rules])
        # What no rule asks for is not looked up.
        self._interfaces = _words([rule.interfaces for rule in rules])
        self._macs = _words([() if rule.hostnames else rule.macs for rule in rules])
        self._source_ports = _axis([_port_bounds(rule.source_ports) for rule in rules])
        self._times = _axis([_time_bounds(rule.times) for rule in rules])
        self._named = mask_of(rule.names is not None for rule in rules)
        self._names = Names.of([rule.names for rule in rules])

    def ask(self, facts: FlowFacts, now: int) -> tuple[int, int]:
        """The rules that may match, and those of which it must be asked whether they do.

        Both as bit masks, rule 0 in the lowest bit.
        """
        protocol, (source, source_port), (destination, port), interface, mac, _, _, _, name, _ = (
            facts
        )
        number = address_number(destination)
        matching = (
            self._sources.rules_at(address_number(source))
            & self._destinations.rules_at(number)
            & self._ports.rules_at(port)
            & self._protocols.rules_at(protocol)
        )
        if self._source_ports is not None:
            matching &= self._source_ports.rules_at(source_port)
        if self._interfaces is not None:
            matching &= self._interfaces.rules_at(interface)
        if self._macs is not None:
            matching &= self._macs.rules_at(mac)
        if self._times is not None:
            matching &= self._times.rules_at(now)
        to_check = self._to_check
        if self._named:
            if name is None:
                to_check |= self._named
            else:
                matching &= self._names.rules_at(name)
        # A large set that is all that a rule still asks for is looked up here: it is what most
        # flows meet first that the vectors leave open.
        first = matching & -matching
        while first & to_check and (asked := self._sets.get(first)) is not None:
            large, others = asked
            inside = is_member(large, facts, number)
            if inside is None:
                break
            if inside:
                return matching, to_check ^ first
            matching &= others
            first = matching & -matching
        return matching, to_check

    def to_ask(self, index: int, facts: FlowFacts) -> tuple[Demand, ...]:
        """What ``ask`` has left open of a rule, when it was asked about these facts."""
        return (self._rest_and_names if facts.name is None else self._rest)[index]


def _unvectored(rule: CompiledRule, demands: Iterable[Demand]) -> Iterable[Demand]:
    for demand in demands:
        if demand.key not in _VECTORED and not (demand.key == "device" and not rule.hostnames):
            yield demand


def _nameless(demands: Iterable[Demand]) -> tuple[Demand, ...]:
    return tuple(demand for demand in demands if demand.key != "domain")


def _only_sets(
    rules: Sequence[CompiledRule], rests: Sequence[tuple[Demand, ...]]
) -> dict[int, tuple[LargeSet, int]]:
    """By the bit of a rule that still asks for one large set alone: the set, and the other rules.

    The others are those that may match though the destination is not in the set.
    """
    sets: dict[int, LargeSet] = {}
    for index, (rule, rest) in enumerate(zip(rules, rests, strict=True)):
        match rest:
            case (SetDemand(Destinations(networks=(), sets=(large,))),) if (
                not rule.goto and rule.names is None and (rule.sniff or large.domains is None)
            ):
                sets[1 << index] = large
    asking: dict[str, int] = {}
    for bit, large in sets.items():
        asking[large.name] = asking.get(large.name, 0) | bit
    return {bit: (large, ~asking[large.name]) for bit, large in sets.items()}


def _words(asked: list[tuple[str, ...]]) -> Words | None:
    return Words.of(asked) if any(asked) else None


def _axis(asked: list[Bounds]) -> Axis | None:
    return Axis.of(asked) if any(bounds is not None for bounds in asked) else None


def _address_bounds(networks: tuple[Network, ...] | None) -> Bounds:
    return None if networks is None else PrefixSet.from_networks(networks).bounds


def _port_bounds(ranges: PortRanges) -> Bounds:
    return tuple(bound for first, last in ranges for bound in (first, last + 1)) or None


def _time_bounds(stretches: tuple[tuple[int, int], ...]) -> Bounds:
    return tuple(bound for stretch in stretches for bound in stretch) or None
