from __future__ import annotations

from typing import Any

import pytest

from gateway.kernel.host_firewall import ChainName, OurRule, parse
from gateway.marks import Marks

INPUT = ChainName("inet", "fw", "in")


def chains(policy: str = "accept") -> list[dict[str, Any]]:
    base = {"family": "inet", "table": "fw", "name": "in", "hook": "input", "policy": policy}
    ours = {"family": "inet", "table": "gateway", "name": "in", "hook": "input", "policy": "drop"}
    return [{"chain": base}, {"chain": ours}, {"chain": base | {"name": "x", "hook": "output"}}]


def listed(**rules: list[Any]) -> Any:
    """Rules of each chain, given by their expressions alone."""

    def list_chain(name: ChainName) -> list[dict[str, Any]]:
        return [
            {"rule": {"handle": n, "expr": expression}}
            for n, expression in enumerate(rules[name.chain], 1)
        ]

    return list_chain


MATCH = {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}}
JUMP = {"jump": {"target": "sub"}}
INVALID_DROPPED = {
    "vmap": {
        "key": {"ct": {"key": "state"}},
        "data": {"set": [["established", {"accept": None}], ["invalid", {"drop": None}]]},
    }
}


@pytest.mark.parametrize(
    ("policy", "rules", "may_refuse"),
    [
        ("drop", {"in": []}, True),
        ("accept", {"in": []}, False),
        ("accept", {"in": [[MATCH, {"accept": None}]]}, False),
        ("accept", {"in": [[MATCH, {"drop": None}]]}, True),
        ("accept", {"in": [[{"reject": {"type": "icmpx"}}]]}, True),
        ("accept", {"in": [[JUMP]], "sub": [[MATCH, {"return": None}]]}, False),
        ("accept", {"in": [[JUMP]], "sub": [[{"goto": {"target": "in"}}]]}, False),
        ("accept", {"in": [[JUMP]], "sub": [[MATCH, {"drop": None}]]}, True),
        ("accept", {"in": [[INVALID_DROPPED]]}, True),
        ("accept", {"in": [[{"vmap": {"key": {"meta": {}}, "data": "@zones"}}]]}, True),
        ("accept", {"in": [[{"xt": {"type": "target", "name": "REJECT"}}]]}, True),
        ("accept", {"in": [[{"xt": {"type": "match", "name": "addrtype"}}]]}, False),
        ("accept", {"in": [[{"xt": None}]]}, True),
    ],
)
def test_whether_a_chain_may_refuse(policy: str, rules: Any, may_refuse: bool) -> None:
    (chain,) = parse(chains(policy), listed(**rules))
    assert chain.name == INPUT
    assert chain.may_refuse is may_refuse


def test_our_rules_are_known_by_their_tag_and_read_back() -> None:
    mark = Marks().divert

    def rule(handle: int, comment: str | None) -> dict[str, Any]:
        left = {"&": [{"meta": {"key": "mark"}}, mark.mask]}
        match = {"match": {"op": "==", "left": left, "right": mark.value}}
        tag = {} if comment is None else {"comment": comment}
        return {"rule": {"handle": handle, "expr": [match, {"accept": None}], **tag}}

    listing = [rule(7, "gateway:input-0x1000000:0123abcd"), rule(8, None), rule(9, "mine")]
    (chain,) = parse(chains(), lambda _: listing)
    assert chain.ours == (OurRule(0, 7, mark),)
    assert chain.accepts([mark])
    assert not chain.accepts([mark, Marks().divert_own])
    assert not chain.accepts([])

    # Somebody put a rule above ours.
    (chain,) = parse(chains(), lambda _: listing[::-1])
    assert not chain.accepts([mark])


def test_chains_at_the_forward_hook_are_told_apart() -> None:
    forward = {"chain": {**chains("drop")[0]["chain"], "name": "fwd", "hook": "forward"}}
    found = parse([*chains(), forward], listed(**{"in": [], "fwd": []}))
    assert [(chain.hook, chain.may_refuse) for chain in found] == [
        ("input", False),
        ("forward", True),
    ]
