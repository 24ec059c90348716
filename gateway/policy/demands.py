"""What a rule's keys ask, one object for each: does it hold, and what was seen instead.

The engine asks those that its bit vectors do not answer; a trace asks them all, one by one.
An answer of None means that a fact is missing which can still be learnt.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.config.rule_values import DAY, WEEKDAYS
from gateway.flow import Owner, Protocol
from gateway.policy.names import NamePatterns
from gateway.policy.prefixes import PrefixSet, address_number
from gateway.policy.question import Demand, Question, all_hold
from gateway.policy.rule import Condition, Destinations, PortRanges


def demands_of(condition: Condition) -> tuple[Demand, ...]:
    """A condition's demands in the order in which rules are explained: cheap ones first."""
    return (*_of_packet(condition), *_to_learn(condition), *_nested(condition))


def _of_packet(asked: Condition) -> Iterator[Demand]:
    if asked.source is not None:
        yield AddressDemand("source", PrefixSet.from_networks(asked.source))
    if asked.destination is not None:
        yield AddressDemand("destination", PrefixSet.from_networks(asked.destination))
    if asked.ports:
        yield PortDemand("port", asked.ports)
    if asked.source_ports:
        yield PortDemand("source_port", asked.source_ports)
    if asked.protocols:
        yield WordDemand("protocol", frozenset(asked.protocols))
    if asked.interfaces:
        yield WordDemand("interface", frozenset(asked.interfaces))
    if asked.macs or asked.hostnames:
        yield DeviceDemand(frozenset(asked.macs), frozenset(asked.hostnames))
    if asked.dscps:
        yield WordDemand("dscp", frozenset(asked.dscps))
    yield from _of_owner(asked)


def _of_owner(asked: Condition) -> Iterator[Demand]:
    if asked.uids:
        yield OwnerDemand("uid", asked.uids)
    if asked.gids:
        yield OwnerDemand("gid", asked.gids)
    if asked.cgroups:
        yield OwnerDemand("cgroup", asked.cgroups)


def _to_learn(asked: Condition) -> Iterator[Demand]:
    if asked.times:
        yield TimeDemand(tuple(bound for stretch in asked.times for bound in stretch))
    for group in asked.destinations:
        yield SetDemand(group, PrefixSet.from_networks(group.networks))
    if asked.countries:
        yield PlaceDemand("country", frozenset(asked.countries))
    if asked.asns:
        yield PlaceDemand("asn", frozenset(asked.asns))
    if asked.sniffed:
        yield SniffedDemand(frozenset(asked.sniffed))
    if asked.names is not None:
        yield NameDemand(asked.names)


def _nested(asked: Condition) -> Iterator[Demand]:
    for inner in asked.all_of:
        yield AllDemand(demands_of(inner))
    if asked.any_of:
        yield AnyDemand(tuple(map(demands_of, asked.any_of)))
    for inner in asked.none_of:
        yield NotDemand(demands_of(inner))


@dataclass(frozen=True, slots=True)
class AddressDemand:
    """``source`` and ``destination``."""

    key: Literal["source", "destination"]
    prefixes: PrefixSet

    def holds(self, question: Question) -> bool:
        """Whether the address is in one of the prefixes."""
        return self.prefixes.contains(address_number(self.seen(question)))

    def seen(self, question: Question) -> str:
        """The address."""
        facts = question.facts
        return facts.source.host if self.key == "source" else facts.destination.host


@dataclass(frozen=True, slots=True)
class SetDemand:
    """``destination`` and ``rule_set`` where large sets are among them."""

    group: Destinations
    prefixes: PrefixSet

    @property
    def key(self) -> str:
        """A rule set's membership is asked by address or by name."""
        return "rule_set"

    def holds(self, question: Question) -> bool | None:
        """Whether the destination is in a prefix, or in one of the sets."""
        if self.prefixes.contains(address_number(question.facts.destination.host)):
            return True
        unknown = False
        for each in self.group.sets:
            inside = question.is_in(each)
            if inside:
                return True
            unknown = unknown or inside is None
        return None if unknown else False

    def seen(self, question: Question) -> str:
        """The address, and the name."""
        return " ".join(filter(None, (question.facts.destination.host, question.facts.name)))


@dataclass(frozen=True, slots=True)
class PortDemand:
    """``port`` and ``source_port``."""

    key: Literal["port", "source_port"]
    ranges: PortRanges

    def holds(self, question: Question) -> bool:
        """Whether the port is in one of the ranges."""
        port = self._port(question)
        return any(first <= port <= last for first, last in self.ranges)

    def seen(self, question: Question) -> str:
        """The port."""
        return str(self._port(question))

    def _port(self, question: Question) -> int:
        facts = question.facts
        return facts.destination.port if self.key == "port" else facts.source.port


@dataclass(frozen=True, slots=True)
class WordDemand:
    """``protocol``, ``interface`` and ``dscp``: equal to one of a few values."""

    key: Literal["protocol", "interface", "dscp"]
    wanted: frozenset[str] | frozenset[int]

    def holds(self, question: Question) -> bool:
        """Whether the fact of that name is among them."""
        return getattr(question.facts, self.key) in self.wanted

    def seen(self, question: Question) -> str:
        """The fact."""
        fact = getattr(question.facts, self.key)
        return "unknown" if fact is None or fact == "" else str(fact)


@dataclass(frozen=True, slots=True)
class DeviceDemand:
    """``device``: by MAC, or by the host name that its DHCP lease has."""

    macs: frozenset[str]
    hostnames: frozenset[str]
    key: str = "device"

    def holds(self, question: Question) -> bool:
        """Whether the source is one of the devices."""
        facts = question.facts
        return facts.mac in self.macs or facts.hostname in self.hostnames

    def seen(self, question: Question) -> str:
        """MAC and host name."""
        facts = question.facts
        return " ".join(filter(None, (facts.mac, facts.hostname))) or "unknown"


@dataclass(frozen=True, slots=True)
class OwnerDemand:
    """``uid``, ``gid`` and ``cgroup`` of this machine's own flows."""

    key: Literal["uid", "gid", "cgroup"]
    wanted: tuple[int, ...] | tuple[str, ...]

    def holds(self, question: Question) -> bool:
        """Whether the owner is as asked; a cgroup is in all above it."""
        fact = getattr(question.facts.owner or Owner(), self.key)
        if isinstance(fact, str):
            return any(f"{fact}/".startswith(f"{each}/") for each in self.wanted)
        return fact in self.wanted

    def seen(self, question: Question) -> str:
        """The owner."""
        if question.facts.owner is None:
            return "not a flow of this machine"
        fact = getattr(question.facts.owner, self.key)
        return "unknown" if fact is None else str(fact)


@dataclass(frozen=True, slots=True)
class TimeDemand:
    """``time`` and ``weekday``: bounds on the week, in minutes."""

    bounds: tuple[int, ...]
    key: str = "time"

    def holds(self, question: Question) -> bool:
        """Whether it is time."""
        return bool(bisect_right(self.bounds, question.now) & 1)

    def seen(self, question: Question) -> str:
        """The moment, as ``fri 22:30``."""
        return week_time(question.now)


def week_time(minute: int) -> str:
    """A minute of the week, as ``fri 22:30``."""
    day, of_day = divmod(minute, DAY)
    return f"{WEEKDAYS[day]} {of_day // 60:02}:{of_day % 60:02}"


@dataclass(frozen=True, slots=True)
class PlaceDemand:
    """``country`` and ``asn`` of the destination, by the database of that name."""

    key: Literal["country", "asn"]
    wanted: frozenset[str] | frozenset[int]

    def holds(self, question: Question) -> bool:
        """Whether it is one of these."""
        return self._place(question) in self.wanted

    def seen(self, question: Question) -> str:
        """The country, or the number of the autonomous system."""
        return str(self._place(question) or "unknown")

    def _place(self, question: Question) -> str | int:
        assert question.geography is not None
        look_up = getattr(question.geography, self.key)
        place: str | int = look_up(question.facts.destination.host)
        return place


@dataclass(frozen=True, slots=True)
class SniffedDemand:
    """``sniffed``: the protocol that the first bytes are of."""

    wanted: frozenset[str]
    key: str = "sniffed"

    def holds(self, question: Question) -> bool | None:
        """Whether it is one of the protocols."""
        facts = question.facts
        if facts.sniffed is None and facts.protocol is not Protocol.ICMP:
            return None
        return facts.sniffed in self.wanted

    def seen(self, question: Question) -> str:
        """The protocol."""
        return _learnt(question.facts.sniffed)


@dataclass(frozen=True, slots=True)
class NameDemand:
    """``domain`` of the destination."""

    patterns: NamePatterns
    key: str = "domain"

    def holds(self, question: Question) -> bool | None:
        """Whether the name is meant; a flow without a name is not."""
        facts = question.facts
        if facts.name is None and facts.protocol is not Protocol.ICMP:
            return None
        return bool(facts.name) and self.patterns.matches(facts.name or "")

    def seen(self, question: Question) -> str:
        """The name."""
        return _learnt(question.facts.name)


def _learnt(fact: str | None) -> str:
    return "not looked for yet" if fact is None else fact or "none"


@dataclass(frozen=True, slots=True)
class AllDemand:
    """``all``: one of its conditions."""

    inner: tuple[Demand, ...]
    key: str = "all"

    def holds(self, question: Question) -> bool | None:
        """Whether all that it asks holds."""
        return all_hold(self.inner, question)

    def seen(self, question: Question) -> str:
        """What its first key that does not hold has seen."""
        return _first_failure(self.inner, question)


@dataclass(frozen=True, slots=True)
class AnyDemand:
    """``any``: of several conditions."""

    choices: tuple[tuple[Demand, ...], ...]
    key: str = "any"

    def holds(self, question: Question) -> bool | None:
        """Whether one of them holds; None where one may."""
        unknown = False
        for choice in self.choices:
            held = all_hold(choice, question)
            if held:
                return True
            unknown = unknown or held is None
        return None if unknown else False

    def seen(self, question: Question) -> str:
        """Why each did not hold."""
        return "; ".join(_first_failure(choice, question) for choice in self.choices)


@dataclass(frozen=True, slots=True)
class NotDemand:
    """``not``: a condition that must not hold."""

    inner: tuple[Demand, ...]
    key: str = "not"

    def holds(self, question: Question) -> bool | None:
        """Whether something that it asks does not hold."""
        held = all_hold(self.inner, question)
        return None if held is None else not held

    def seen(self, question: Question) -> str:
        """All that held, since that is what was in the way."""
        return ", ".join(f"{each.key} {each.seen(question)}" for each in self.inner)


def _first_failure(demands: Sequence[Demand], question: Question) -> str:
    for demand in demands:
        if not demand.holds(question):
            return f"{demand.key} {demand.seen(question)}"
    return ""
