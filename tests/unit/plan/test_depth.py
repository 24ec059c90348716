"""However many rules ask for more than one test, and however they nest, nftables takes them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from policies import CONFIG, conditions, policies

from gateway.plan.build import build_plan
from gateway.plan.model import Backend, Chain, Plan
from gateway.plan.verdicts import Goto, Jump
from gateway.policy.engine import Policy
from gateway.policy.rule import CompiledRule, Condition

from .scenarios import ROUTER

#: NFT_JUMP_STACK_SIZE, include/net/netfilter/nf_tables.h.
NFTABLES_DEPTH = 16


def depth(chains: Iterable[Chain]) -> int:
    """The number of chains on the longest way through them; they lead in no circle."""
    known = {chain.name: chain for chain in chains}
    found: dict[str, int] = {}

    def below(name: str) -> int:
        if name not in found:
            leads_to = {
                rule.verdict.chain
                for rule in known[name].rules
                if isinstance(rule.verdict, Goto | Jump)
            }
            found[name] = 1 + max(map(below, leads_to), default=0)
        return found[name]

    return max(below(name) for name, chain in known.items() if chain.hook)


def nested(count: int, name: str = "") -> list[CompiledRule]:
    """So many rules, each of which asks for one port and not for another."""
    return [
        CompiledRule(
            index=index,
            text=f"{name}[{index}]",
            outbound="direct",
            protocols=("tcp",),
            none_of=(Condition(ports=((index + 1, index + 1),), protocols=("tcp",)),),
        )
        for index in range(count)
    ]


def last(index: int) -> CompiledRule:
    return CompiledRule(index=index, text="last", outbound="home")


def goto(name: str, index: int = 0) -> CompiledRule:
    return CompiledRule(index=index, text=f"to {name}", outbound="", goto=name, protocols=("tcp",))


def _handed_over(plan: Plan) -> list[str]:
    return [each.rule for each in plan.placements if "too deep" in each.reason]


@pytest.mark.parametrize("count", [1, 40])
def test_rules_of_several_tests_stand_beside_one_another(count: int) -> None:
    plan = build_plan(CONFIG, Policy([*nested(count), last(count)]), ROUTER, Backend.NFTABLES)
    assert depth(plan.chains) == 4
    assert not _handed_over(plan)


def test_a_list_stands_once_however_many_rules_lead_to_it() -> None:
    policy = Policy([*(goto("page", n) for n in range(40)), last(40)], {"page": nested(40)})
    plan = build_plan(CONFIG, policy, ROUTER, Backend.NFTABLES)
    lan = [chain for chain in plan.chains if chain.name.startswith("decide_")]
    own = [chain for chain in lan if chain.name.startswith("decide_own")]
    assert len(lan) - len(own) == 1 + 40
    assert depth(plan.chains) == 5


def test_lists_that_lead_on_too_deep_are_handed_over() -> None:
    lists = {f"page{n}": [goto(f"page{n + 1}")] for n in range(20)}
    policy = Policy([goto("page0"), last(1)], {**lists, "page20": nested(1)})
    plan = build_plan(CONFIG, policy, ROUTER, Backend.NFTABLES)
    assert depth(plan.chains) <= NFTABLES_DEPTH
    # The deepest that the kernel takes, counted from the last list; then from there on again.
    assert _handed_over(plan) == ["to page0", "to page11"]


def test_conditions_that_nest_too_deep_are_handed_over() -> None:
    inner = Condition(protocols=("tcp",))
    for _ in range(12):
        inner = Condition(any_of=(inner, Condition(none_of=(inner,), interfaces=("lan0",))))
    deep = CompiledRule(index=0, text="deep", outbound="direct", any_of=inner.any_of)
    plan = build_plan(CONFIG, Policy([deep, last(1)]), ROUTER, Backend.NFTABLES)
    assert depth(plan.chains) <= NFTABLES_DEPTH
    assert _handed_over(plan) == ["deep"]


@given(policies(doubtful=True), conditions(doubtful=True, depth=4))
def test_no_policy_makes_chains_too_deep(policy: Policy, asked: dict[str, object]) -> None:
    rule = CompiledRule(**asked, index=9, text="deep", outbound="silent", log=True)
    deeper = policy.rewritten(lambda rules: (rule, *rules))
    assert depth(build_plan(CONFIG, deeper, ROUTER, Backend.NFTABLES).chains) <= NFTABLES_DEPTH
