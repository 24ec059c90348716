"""One flow while it is decided, and what it can be asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from typing import Protocol as Interface

from gateway.flow import FlowFacts, Protocol
from gateway.policy.prefixes import address_number
from gateway.policy.rule import LargeSet


class Geography(Interface):
    """Where addresses are (MMDB files, as the owner configured them)."""

    def country(self, host: str) -> str:
        """ISO 3166 code in upper case; empty where unknown."""

    def asn(self, host: str) -> int:
        """Number of the autonomous system; 0 where unknown."""


def is_member(asked: LargeSet, facts: FlowFacts, number: int) -> bool | None:
    """Whether the destination, of this ``number``, is in a set; None while its name is missing."""
    if asked.prefixes is not None and asked.prefixes.contains(number):
        return True
    if asked.domains is None:
        return False
    if facts.name is None and facts.protocol is not Protocol.ICMP:
        return None
    return bool(facts.name) and asked.domains.matches(facts.name or "")


class Question:
    """One flow while it is decided; remembers what large sets have answered."""

    __slots__ = ("_in_set", "facts", "geography", "now")

    def __init__(self, facts: FlowFacts, now: int, geography: Geography | None) -> None:
        self.facts = facts
        self.now = now
        self.geography = geography
        self._in_set: dict[str, bool | None] = {}

    def without_sniffing(self) -> Question:
        """The same flow for a rule that takes facts not yet learnt for nothing."""
        facts = self.facts
        name, sniffed = facts.name or "", facts.sniffed or ""
        return Question(facts._replace(name=name, sniffed=sniffed), self.now, self.geography)

    @property
    def need(self) -> Literal["name", "sniffed"]:
        """The fact to learn next, once an answer was None."""
        return "name" if self.facts.name is None else "sniffed"

    def is_in(self, asked: LargeSet) -> bool | None:
        """Whether the destination is in a set, by address or by name."""
        known = self._in_set
        if asked.name not in known:
            number = address_number(self.facts.destination.host)
            known[asked.name] = is_member(asked, self.facts, number)
        return known[asked.name]


class Demand(Interface):
    """One key of a rule."""

    @property
    def key(self) -> str:
        """The key, as it is written in the file."""

    def holds(self, question: Question) -> bool | None:
        """Whether the flow is as asked; None while a fact is missing."""

    def seen(self, question: Question) -> str:
        """What the flow has instead, for people."""


def all_hold(demands: Sequence[Demand], question: Question) -> bool | None:
    """Whether every demand holds; None only where nothing but a missing fact is in the way."""
    unknown = False
    for demand in demands:
        held = demand.holds(question)
        if held is False:
            return False
        unknown = unknown or held is None
    return None if unknown else True
