"""The policy: which rule a flow meets first, and so which outbound it takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

from gateway.decision import Decision, Undecided
from gateway.flow import FlowFacts
from gateway.policy.question import Geography, Question, all_hold
from gateway.policy.rule import WEEK, CompiledRule
from gateway.policy.table import Table


class Needs(NamedTuple):
    """Which facts some rule asks for; the others need not be fetched.

    ``owner`` is for the flows of this machine alone. ``name`` and ``sniffed`` are asked for
    flow by flow (``Undecided``); where they are False, that never happens.
    """

    interface: bool = False
    mac: bool = False
    hostname: bool = False
    dscp: bool = False
    owner: bool = False
    time: bool = False
    name: bool = False
    sniffed: bool = False


class Outcome(StrEnum):
    """What became of a flow at one rule."""

    MISSED = "missed"
    ENTERED = "entered"
    LEFT = "left"
    MATCHED = "matched"
    UNDECIDED = "undecided"


class Step(NamedTuple):
    """One rule of a trace.

    ``key`` and ``seen``: of a missed rule, its first key that did not hold, and what the
    flow has there; of an undecided one, the fact that is missing. ``left`` stands at the end
    of a list that a rule led to, with that rule. ``answer`` is what is decided by it.
    """

    rule: CompiledRule
    outcome: Outcome
    key: str = ""
    seen: str = ""
    answer: Decision | Undecided | None = None


class Policy:
    """Rules in order, the last of which matches everything, and lists they lead to. Immutable."""

    __slots__ = ("_main", "_tables", "geography", "lists", "needs", "rules")

    def __init__(
        self,
        rules: Iterable[CompiledRule],
        lists: Mapping[str, Iterable[CompiledRule]] | None = None,
        geography: Geography | None = None,
    ) -> None:
        """Raises ``ValueError`` where the last rule is not a catch-all.

        Every ``goto`` is to a list that is there, and no list leads back to itself.
        """
        self._main = Table(rules)
        self._tables = {name: Table(its) for name, its in (lists or {}).items()}
        self.geography = geography
        self.rules = self._main.rules
        self.lists = {name: table.rules for name, table in self._tables.items()}
        if not self.rules or not self.rules[-1].is_catch_all:
            raise ValueError("the last rule of a policy must match everything")
        self.needs = _needs(tuple(self.every_rule))

    @property
    def decisions(self) -> Iterator[Decision]:
        """Every decision that can be met with."""
        for table in (self._main, *self._tables.values()):
            yield from (answer for answer in table.answers if isinstance(answer, Decision))

    @property
    def moments(self) -> tuple[int, ...]:
        """The minutes of the week at which some rule begins or ends, and the first of all."""
        conditions = [each for rule in self.every_rule for each in rule.parts()]
        bounds = {at for each in conditions for stretch in each.times for at in stretch}
        return tuple(sorted({0, *bounds} - {WEEK}))

    @property
    def every_rule(self) -> Iterator[CompiledRule]:
        """The rules of all lists, the main one first."""
        yield from self.rules
        for its in self.lists.values():
            yield from its

    def rewritten(
        self, rewrite: Callable[[tuple[CompiledRule, ...]], Iterable[CompiledRule]]
    ) -> Policy:
        """The same policy, each list of rules as ``rewrite`` says. Raises as the class does."""
        lists = {name: rewrite(rules) for name, rules in self.lists.items()}
        return Policy(rewrite(self.rules), lists, self.geography)

    def decide(self, facts: FlowFacts, now: int | None = None) -> Decision | Undecided:
        """The answer of the first rule that matches, or what must be known to find it.

        ``now``: minutes of the week since Monday 00:00 in the policy's time zone; it may be
        left out where ``needs.time`` is False. Addresses are canonical text, IPv4-mapped ones
        written as IPv4. Raises ``ValueError`` where one is a name, or the time is missing.
        """
        if now is None:
            if self.needs.time:
                raise ValueError("rules of this policy ask for the time")
            now = 0
        main = self._main
        matching, doubtful = main.ask(facts, now)
        first = matching & -matching
        answer: Decision | Undecided | str | None
        if not first & doubtful:
            answer = main.answers[first.bit_length() - 1]
        else:
            answer = self._search(main, matching, doubtful, Question(facts, now, self.geography))
        assert isinstance(answer, Decision | Undecided), "the last rule matches everything"
        return answer

    def settle(self, facts: FlowFacts, now: int | None = None) -> Decision:
        """The same, where nothing more can be learnt of a flow: what is missing is not there."""
        name, sniffed = facts.name or "", facts.sniffed or ""
        answer = self.decide(facts._replace(name=name, sniffed=sniffed), now)
        assert isinstance(answer, Decision), "all that can be known is known"
        return answer

    def _search(
        self, table: Table, matching: int, doubtful: int, question: Question
    ) -> Decision | Undecided | None:
        """The answer of a list; None where no rule of it decides."""
        while matching:
            first = matching & -matching
            matching ^= first
            index = first.bit_length() - 1
            its = question
            if first & doubtful:
                rule = table.rules[index]
                its = question if rule.sniff else question.without_sniffing()
                held = all_hold(table.to_ask(index, question.facts), its)
                if held is None:
                    return Undecided(its.need, rule.index, rule.text)
                if not held:
                    continue
            answer: Decision | Undecided | str | None = table.answers[index]
            if isinstance(answer, str):
                inner = self._tables[answer]
                answer = self._search(inner, *inner.ask(its.facts, its.now), its)
            if answer is not None:
                return answer
        return None

    def trace(self, facts: FlowFacts, now: int | None = None) -> tuple[Step, ...]:
        """Every rule tried, in order, and why it did or did not match.

        The last step has the answer, the same that ``decide`` gives; raises as it does.
        """
        if now is None and self.needs.time:
            raise ValueError("rules of this policy ask for the time")
        question = Question(facts, now or 0, self.geography)
        return tuple(self._walk(self._main, question))

    def _walk(self, table: Table, question: Question) -> Iterator[Step]:
        for rule, demands, answer in zip(table.rules, table.demands, table.answers, strict=True):
            its = question if rule.sniff else question.without_sniffing()
            missed = next((each for each in demands if each.holds(its) is False), None)
            if missed is not None:
                yield Step(rule, Outcome.MISSED, missed.key, missed.seen(its))
            elif all_hold(demands, its) is None:
                undecided = Undecided(its.need, rule.index, rule.text)
                yield Step(rule, Outcome.UNDECIDED, its.need, "not looked for yet", undecided)
                return
            elif isinstance(answer, Decision):
                yield Step(rule, Outcome.MATCHED, answer=answer)
                return
            else:
                yield Step(rule, Outcome.ENTERED)
                last = None
                for last in self._walk(self._tables[answer], its):
                    yield last
                if last is not None and last.answer is not None:
                    return
                yield Step(rule, Outcome.LEFT)


def _needs(rules: Collection[CompiledRule]) -> Needs:
    asked = [condition for rule in rules for condition in rule.parts()]
    return Needs(
        interface=any(c.interfaces for c in asked),
        mac=any(c.macs or c.hostnames for c in asked),
        hostname=any(c.hostnames for c in asked),
        dscp=any(c.dscps for c in asked),
        owner=any(c.uids or c.gids or c.cgroups for c in asked),
        time=any(c.times for c in asked),
        name=any(rule.asks_name for rule in rules),
        sniffed=any(rule.asks_sniffed for rule in rules),
    )
