"""Rules that nest deeper than nftables takes are refused before anything is applied."""

from __future__ import annotations

from dataclasses import replace

import pytest
from policies import CONFIG

from gateway.errors import CapabilityError
from gateway.plan.build import build_plan
from gateway.plan.depth import NFTABLES_DEPTH, depth
from gateway.plan.model import Backend
from gateway.policy.engine import Policy
from gateway.policy.rule import CompiledRule, Condition

from .scenarios import ROUTER


def nested(count: int) -> Policy:
    """So many rules, each of which asks for one port and not for another."""
    rules = [
        CompiledRule(
            index=index,
            text="nested",
            outbound="direct",
            protocols=("tcp",),
            none_of=(Condition(ports=((index + 1, index + 1),), protocols=("tcp",)),),
        )
        for index in range(count)
    ]
    return Policy([*rules, CompiledRule(index=count, text="last", outbound="home")])


def test_what_nests_too_deep_is_refused_with_its_cure() -> None:
    assert depth(build_plan(CONFIG, nested(5), ROUTER, Backend.NFTABLES).chains) <= NFTABLES_DEPTH
    with pytest.raises(CapabilityError, match="nftables takes 16") as refusal:
        build_plan(CONFIG, nested(30), ROUTER, Backend.NFTABLES)
    assert "backend: iptables" in refusal.value.hint
    deep = build_plan(CONFIG, nested(30), ROUTER, Backend.IPTABLES)
    assert depth(deep.chains) > NFTABLES_DEPTH
    assert depth(tuple(replace(chain, hook=None) for chain in deep.chains)) == 0
