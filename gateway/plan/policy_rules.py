"""The owner's rules as netfilter rules, in the order of the file; first match wins.

A rule that the kernel can judge becomes netfilter rules in the chain of its list. One that
asks for more than one test, alternatives or negations, has a chain of its own, which finds out
whether they hold and comes back; a list that rules lead to is a chain that comes back as well.
So neither the number of rules nor that of lists makes chains deeper, only what stands inside
one rule.

What a chain has found out is in the packet's mark: ``undecided`` on the way, ``held`` where the
conditions of a rule do; whatever carries out a decision puts its own in the place of these.

Where the kernel cannot know whether a rule matches, packets for which it may match go to
those who can (``Answers.ask``): they ask the whole policy, from its first rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from gateway.config.groups import stands_for
from gateway.config.outbounds import DirectOutbound, RejectOutbound
from gateway.config.schema import Config
from gateway.flow import Protocol
from gateway.marks import Mark, Marks
from gateway.plan.address_sets import AddressSets
from gateway.plan.conditions import (
    ALWAYS,
    NEVER,
    All,
    AnyOf,
    Expression,
    Not,
    Packets,
    Test,
    Variant,
    split,
)
from gateway.plan.matches import MarkIs, Transport
from gateway.plan.model import Chain, NftRule
from gateway.plan.normal_form import all_of, normal_form
from gateway.plan.verdicts import Drop, Goto, Jump, Log, Return, SetMark, Verdict
from gateway.policy.engine import Policy
from gateway.policy.rule import CompiledRule

#: Chains that carry out what a rule says.
DIRECT: Final = "direct"
REFUSE: Final = "refuse"
REFUSE_ICMP: Final = "refuse_icmp"

#: nftables takes 16 chains one inside another (NFT_JUMP_STACK_SIZE, include/net/netfilter/
#: nf_tables.h). Of these, ``prerouting``, ``lan`` and ``decide`` stand before the rules' own,
#: and behind them one that logs, ``divert`` and ``divert_otherwise``. Rules that nest deeper
#: are left to those who are asked.
NESTING: Final = 16 - 3 - 3
_LOG_PREFIX: Final = 28

_PLAIN_DIRECT = DirectOutbound(type="direct")


@dataclass(frozen=True, slots=True)
class Answers:
    """Where packets go: to be ``divert``ed, and to be decided by those who know more.

    ``asked``: the protocols that may be asked about; of others, what the kernel cannot know
    does not hold.
    """

    divert: str
    ask: str
    asked: tuple[Protocol, ...]


class PolicyChains(NamedTuple):
    """The chains of a policy.

    ``handed_over``: texts of the rules that nest too deep. ``marking``: packets carry a mark
    on their way through the chains.
    """

    chains: tuple[Chain, ...]
    handed_over: frozenset[str]
    marking: bool


def direct_chain(mark: Mark | None) -> str:
    """The chain for direct flows whose packets carry a mark of the owner."""
    return DIRECT if mark is None else f"{DIRECT}_{mark.value:x}_{mark.mask:x}"


def policy_chains(
    name: str,
    policy: Policy,
    config: Config,
    packets: Packets,
    answers: Answers,
    sets: AddressSets,
) -> PolicyChains:
    """All rules, from the chain ``name`` on; adds the sets that they refer to."""
    return _Writer(name, policy.lists, config, packets, answers, sets).write(policy.rules)


class _Subchain(NamedTuple):
    """A chain to jump into, and how many chains stand one inside another from there on."""

    name: str
    height: int


class _Writer:
    def __init__(
        self,
        name: str,
        lists: Mapping[str, Sequence[CompiledRule]],
        config: Config,
        packets: Packets,
        answers: Answers,
        sets: AddressSets,
    ) -> None:
        self._name = name
        self._lists = lists
        self._config = config
        self._packets = packets
        self._answers = answers
        self._sets = sets
        marks = Marks(config.marks.base)
        self._undecided = SetMark(marks.undecided)
        self._still_undecided = MarkIs(marks.undecided)
        self._hold = SetMark(marks.held)
        self._held = MarkIs(marks.held)
        self._chains: list[Chain] = []
        self._starts: dict[str, _Subchain] = {}
        self._handed_over: set[str] = set()

    def write(self, rules: Sequence[CompiledRule]) -> PolicyChains:
        """The chain of the list, and those that it leads to."""
        written, height = self._list(rules)
        if height:
            written.insert(0, NftRule("undecided", self._undecided))
        chains = (Chain(self._name, "mangle", tuple(written)), *self._chains)
        return PolicyChains(chains, frozenset(self._handed_over), bool(height))

    def _list(self, rules: Sequence[CompiledRule]) -> tuple[list[NftRule], int]:
        """The rules, and how many chains stand one inside another below them."""
        written: list[NftRule] = []
        deepest = 0
        for rule in rules:
            its, height = self._rule(rule)
            written += its
            deepest = max(deepest, height)
        return written, deepest

    def _rule(self, rule: CompiledRule) -> tuple[list[NftRule], int]:
        test, others = split(rule, self._packets, self._sets)
        if test == NEVER:
            return [], 0
        name = f"rule-{rule.index}-{rule.part}" if rule.part else f"rule-{rule.index}"
        certain = normal_form(others, doubts=False)
        possible = normal_form(others, doubts=True)
        inner = self._start(rule.goto) if rule.goto and certain != NEVER else None
        height = max(_height(certain), _height(possible), inner.height if inner else 0)
        if height > NESTING:
            self._handed_over.add(rule.text)
            return [*_each(name, self._asked(test), Goto(self._answers.ask))], 0
        written: list[NftRule] = []
        if certain != NEVER:
            verdict = Jump(inner.name) if inner else self._verdict(rule)
            written += self._when(name, test, certain, verdict)
        if inner:
            decided = replace(self._still_undecided, negate=True)
            written.append(NftRule(f"decided-{rule.index}", Return(), (decided,)))
            # What comes back from the list goes on with the next rule: it is not in doubt.
            contrary = normal_form(others, doubts=True, negate=True)
            possible = NEVER if certain == possible else all_of((possible, contrary))
        if certain != possible:
            asked = f"{name}-ask" if written else name
            ask = Goto(self._answers.ask)
            written += self._when(asked, self._asked(test), possible, ask)
        return written, height

    def _when(
        self, name: str, test: Test, expression: Expression, verdict: Verdict
    ) -> Iterator[NftRule]:
        """The verdict, for packets for which the test and the expression hold."""
        if expression == ALWAYS:
            yield from _each(name, test, verdict)
        elif expression != NEVER and test != NEVER:
            yield from _each(name, test, Jump(self._condition(expression)))
            yield NftRule(f"{name}-holds", verdict, (self._held,))

    def _condition(self, expression: Expression) -> str:
        """A chain from which an undecided packet comes back ``held`` where this holds."""
        return self._chain(list(self._found_out(expression)))

    def _found_out(self, expression: Expression) -> Iterator[NftRule]:
        match expression:
            case Test():
                yield from _each("if", expression, self._hold)
            case Not(Test() as contrary):
                yield from _each("unless", contrary, Return())
                yield NftRule("else", self._hold)
            case AnyOf(choices):
                yield from self._any_of(sorted(choices, key=_is_nested))
            case All(parts):
                yield from self._all_of(sorted(parts, key=_is_not_contrary))

    def _any_of(self, choices: Sequence[Expression]) -> Iterator[NftRule]:
        for number, choice in enumerate(choices):
            if isinstance(choice, Test):
                yield from _each(f"if-{number}", choice, self._hold)
                continue
            yield NftRule(f"held-{number}", Return(), (self._held,))
            yield NftRule(f"try-{number}", Jump(self._condition(choice)))

    def _all_of(self, parts: Sequence[Expression]) -> Iterator[NftRule]:
        *before, last = parts
        for number, part in enumerate(before):
            if isinstance(part, Not) and isinstance(part.inner, Test):
                yield from _each(f"unless-{number}", part.inner, Return())
                continue
            yield NftRule(f"try-{number}", Jump(self._condition(part)))
            yield NftRule(f"missed-{number}", Return(), (self._still_undecided,))
            yield NftRule(f"next-{number}", self._undecided)
        yield from self._found_out(last)

    def _start(self, name: str) -> _Subchain:
        """The chain of a list; what no rule of it decides comes back undecided."""
        if name not in self._starts:
            written, height = self._list(self._lists[name])
            chain = self._chain([NftRule("undecided", self._undecided), *written])
            self._starts[name] = _Subchain(chain, height + 1)
        return self._starts[name]

    def _asked(self, test: Test) -> Test:
        """The same test, of packets that may be asked about."""
        limited = (_of_protocols(variant, self._answers.asked) for variant in test.variants)
        return Test(tuple(variant for variant in limited if variant is not None))

    def _chain(self, rules: Sequence[NftRule]) -> str:
        name = f"{self._name}_{len(self._chains) + 2}"
        self._chains.append(Chain(name, "mangle", tuple(rules)))
        return name

    def _verdict(self, rule: CompiledRule) -> Verdict:
        verdict = self._answer(rule)
        if rule.log and verdict != Goto(self._answers.divert):
            text = rule.text.partition(" ")[0]
            log = Log(f"gateway {text}"[: _LOG_PREFIX - 2] + ": ")
            return Goto(self._chain([NftRule("log", log), NftRule("then", verdict)]))
        return verdict

    def _answer(self, rule: CompiledRule) -> Verdict:
        outbound = stands_for(self._config, rule.outbound)
        if outbound == _PLAIN_DIRECT:
            return Goto(direct_chain(rule.mark))
        if not isinstance(outbound, RejectOutbound):
            return Goto(self._answers.divert)
        if rule.part:
            return Goto(REFUSE)  # datagrams that nobody carries: port unreachable
        if outbound.answer == "drop":
            return Drop()
        return Goto(REFUSE if outbound.answer == "tcp-reset" else REFUSE_ICMP)


def _each(name: str, test: Test, verdict: Verdict) -> Iterator[NftRule]:
    for family, matches in test.variants:
        yield NftRule(f"{name}-{family}" if family else name, verdict, matches, family)


def _height(expression: Expression) -> int:
    """How many chains stand one inside another to find out whether it holds, at most."""
    match expression:
        case All(parts) | AnyOf(parts):
            return 1 + max(map(_height, parts))
        case _:
            return 0 if expression in (ALWAYS, NEVER) else 1


def _is_nested(expression: Expression) -> bool:
    return not isinstance(expression, Test)


def _is_not_contrary(expression: Expression) -> bool:
    return not isinstance(expression, Not)


def _of_protocols(variant: Variant, asked: tuple[Protocol, ...]) -> Variant | None:
    """The variant for these protocols alone; None where it is for none of them."""
    if len(asked) == len(Protocol):
        return variant
    matches = variant.matches
    for place, match in enumerate(matches):
        if isinstance(match, Transport):
            both = tuple(protocol for protocol in match.protocols if protocol in asked)
            limited = replace(match, protocols=both)
            kept = (*matches[:place], limited, *matches[place + 1 :])
            return variant._replace(matches=kept) if both else None
    return variant._replace(matches=(Transport(asked), *matches))
