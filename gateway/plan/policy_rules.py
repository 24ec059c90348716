"""The owner's rules as netfilter rules, in the order of the file; first match wins.

A rule that the kernel can judge becomes netfilter rules in the chain of its list. One that
asks for more than that, alternatives or negations, becomes chains of its own: each tests one
thing and goes on to one of two others, as in a flow chart. Nothing ever comes back from a
chain, so whatever is decided ends where it is decided.

Where the kernel cannot know whether a rule matches, packets for which it may match go to
those who can (``Answers.ask``): they ask the whole policy, from its first rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from gateway.config.outbounds import DirectOutbound, RejectOutbound
from gateway.config.schema import Config
from gateway.flow import Protocol
from gateway.marks import Mark
from gateway.plan.address_sets import AddressSets
from gateway.plan.conditions import (
    ALWAYS,
    NEVER,
    All,
    AnyOf,
    Doubt,
    Expression,
    Not,
    Packets,
    Test,
    Variant,
    doubts,
    split,
)
from gateway.plan.model import Chain, Drop, Goto, Log, NftRule, Transport, Verdict
from gateway.policy.engine import Policy
from gateway.policy.rule import CompiledRule

#: Chains that carry out what a rule says.
DIRECT: Final = "direct"
REFUSE: Final = "refuse"
REFUSE_ICMP: Final = "refuse_icmp"

#: A list stands once for each rule that leads to it. Where that makes more rules than this in
#: all, rules that lead to lists are left to those who are asked.
RULES_LIMIT: Final = 4096
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
) -> list[Chain]:
    """All rules, from the chain ``name`` on; adds the sets that they refer to."""
    return _Writer(name, policy.lists, config, packets, answers, sets).write(policy.rules)


class _Writer:
    """Writes a list from its end, since every rule must know where it goes on."""

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
        self._chains: list[Chain] = []
        self._doubts: dict[Verdict, Verdict] = {}
        self._starts: dict[tuple[str, Verdict], Verdict] = {}
        self._written = 0

    def write(self, rules: Sequence[CompiledRule]) -> list[Chain]:
        """The chain of the list, and those that it leads to."""
        first = Chain(self._name, "mangle", tuple(self._list(rules, [])))
        return [first, *reversed(self._chains)]

    def _list(self, rules: Sequence[CompiledRule], behind: list[NftRule]) -> list[NftRule]:
        self._written += len(rules)
        for rule in reversed(rules):
            behind = self._rule(rule, behind)
        return behind

    def _rule(self, rule: CompiledRule, behind: list[NftRule]) -> list[NftRule]:
        """The rule, with all that stands behind it in its list."""
        test, others = split(rule, self._packets, self._sets)
        if test == NEVER:
            return behind
        name = f"rule-{rule.index}-{rule.part}" if rule.part else f"rule-{rule.index}"
        if not others.parts and not rule.goto:
            return [*_each(name, test, self._verdict(rule)), *behind]
        if all(isinstance(part, Doubt) for part in others.parts) and not rule.goto:
            return [*_each(name, self._asked(test), Goto(self._answers.ask)), *behind]
        after = self._chain(behind)
        matched = self._enter_list(rule.goto, after) if rule.goto else self._verdict(rule)
        verdict = self._enter(others, matched, after, after)
        otherwise = [] if test == ALWAYS else [NftRule(f"{name}-else", after)]
        return [*_each(name, test, verdict), *otherwise]

    def _doubt(self, after: Verdict) -> Verdict:
        """Ask, or go on with the next rule where nobody may be asked."""
        if after not in self._doubts:
            ask = _each("ask", self._asked(ALWAYS), Goto(self._answers.ask))
            self._doubts[after] = self._chain([*ask, NftRule("else", after)])
        return self._doubts[after]

    def _enter(self, asked: Expression, yes: Verdict, no: Verdict, after: Verdict) -> Verdict:
        """What to do with a packet in order to go on by whether the expression holds.

        ``after`` leads to the next rule. Chains are made from the last to the first, and what
        is in doubt is asked last.
        """
        if yes == no:
            return yes
        match asked:
            case Doubt():
                return self._doubt(after)
            case Not(inner):
                return self._enter(inner, no, yes, after)
            case All(parts):
                for part in sorted(parts, key=_is_doubtful, reverse=True):
                    yes = self._enter(part, yes, no, after)
                return yes
            case AnyOf(choices):
                for choice in sorted(choices, key=_is_doubtful, reverse=True):
                    no = self._enter(choice, yes, no, after)
                return no
            case Test():
                if asked in (ALWAYS, NEVER):
                    return yes if asked == ALWAYS else no
                return self._chain([*_each("if", asked, yes), NftRule("else", no)])

    def _enter_list(self, name: str, after: Verdict) -> Verdict:
        """The first rule of a list, at whose end it goes on with ``after``."""
        if self._written + len(self._lists[name]) > RULES_LIMIT:
            return self._doubt(after)
        key = (name, after)
        if key not in self._starts:
            self._starts[key] = self._chain(self._list(self._lists[name], [NftRule("end", after)]))
        return self._starts[key]

    def _asked(self, test: Test) -> Test:
        """The same test, of packets that may be asked about."""
        limited = (_of_protocols(variant, self._answers.asked) for variant in test.variants)
        return Test(tuple(variant for variant in limited if variant is not None))

    def _chain(self, rules: list[NftRule]) -> Verdict:
        """Into a chain with these rules; a lone rule for all packets needs none."""
        first = rules[0]
        if not first.matches and first.family is None and not isinstance(first.verdict, Log):
            return first.verdict
        name = f"{self._name}_{len(self._chains) + 2}"
        self._chains.append(Chain(name, "mangle", tuple(rules)))
        return Goto(name)

    def _verdict(self, rule: CompiledRule) -> Verdict:
        verdict = self._answer(rule)
        if rule.log and verdict != Goto(self._answers.divert):
            text = rule.text.partition(" ")[0]
            log = Log(f"gateway {text}"[: _LOG_PREFIX - 2] + ": ")
            return self._chain([NftRule("log", log), NftRule("then", verdict)])
        return verdict

    def _answer(self, rule: CompiledRule) -> Verdict:
        outbound = self._config.outbound(rule.outbound)
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


def _is_doubtful(expression: Expression) -> bool:
    return bool(doubts(expression))


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
