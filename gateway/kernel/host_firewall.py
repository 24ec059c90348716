"""Diverted packets past this machine's own input firewall, where that is nftables.

A packet that is handed to our listener passes the input hook with a port that no rule of
the owner's firewall was made for. An accept in a chain of ours ends that chain alone, so
each foreign base chain that may refuse packets gets rules of ours at its top: our marks,
accept, with our tag. ``iptables-nft`` (1.8.9) reads such a rule in its own tables as
``-m mark --mark V/M -m comment --comment TAG -j ACCEPT``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from gateway.errors import ApplyError, CapabilityError
from gateway.kernel import libnftables
from gateway.kernel.step import Step
from gateway.marks import NFT_TABLE, TAG_PREFIX, Mark
from gateway.plan.model import Accept, MarkIs, NftRule

_FAMILIES = ("inet", "ip", "ip6")
_REFUSALS = ("drop", "reject")
_XT_REFUSALS = ("DROP", "REJECT")

_Rules = list[dict[str, Any]]


class ChainName(NamedTuple):
    """A chain as nft(8) names it."""

    family: str
    table: str
    chain: str

    def __str__(self) -> str:
        return " ".join(self)


class OurRule(NamedTuple):
    """A rule of ours in a foreign chain; ``mark`` is None where another version wrote it."""

    position: int
    handle: int
    mark: Mark | None


@dataclass(frozen=True, slots=True)
class InputChain:
    """A foreign base chain at the input hook.

    ``may_refuse``: a packet may be dropped or rejected here, by the policy, by a rule, or
    in a chain that is jumped to.
    """

    name: ChainName
    may_refuse: bool
    ours: tuple[OurRule, ...]

    def accepts(self, marks: Sequence[Mark]) -> bool:
        """Whether our rules are what they should be for these marks, and stand first."""
        return [(rule.position, rule.mark) for rule in self.ours] == list(enumerate(marks))


def apply(marks: Sequence[Mark]) -> Iterator[Step]:
    """Let packets with these marks in; with none, take our rules away. Yields each change.

    A chain that nobody but its owner may change (``flags owner``) is passed over:
    ``warnings`` names it.
    """
    for chain in read():
        before = [rule.mark for rule in chain.ours if rule.mark]
        if _bring(chain, marks if chain.may_refuse else ()):
            undo = partial(_restore, chain.name, before)
            yield Step(f"host firewall: chain {chain.name} changed", undo)


def warnings(marks: Sequence[Mark]) -> tuple[str, ...]:
    """What stands in the way of packets with these marks now."""
    return tuple(
        f"chain {chain.name} may refuse diverted packets, and has no rule that lets"
        f" marks {', '.join(map(str, marks))} in"
        for chain in read()
        if chain.may_refuse and not chain.accepts(marks)
    )


def read() -> tuple[InputChain, ...]:
    """Every foreign base chain at the input hook; none on a machine without nftables."""
    try:
        return parse(libnftables.query("list ruleset", elements=False))
    except (CapabilityError, ApplyError):
        # No library, or no nf_tables in the kernel: there is no such chain.
        return ()


def parse(ruleset: Iterable[dict[str, Any]]) -> tuple[InputChain, ...]:
    """The same from a listing (libnftables-json(5))."""
    rules: dict[ChainName, _Rules] = {}
    policies: dict[ChainName, str] = {}
    for item in ruleset:
        match item:
            case {"chain": {"hook": "input", "family": family, "table": table} as chain}:
                if family in _FAMILIES and (family, table) != ("inet", NFT_TABLE):
                    base = ChainName(family, table, chain["name"])
                    policies[base] = chain.get("policy", "accept")
            case {"rule": {"family": family, "table": table, "chain": in_chain} as rule}:
                rules.setdefault(ChainName(family, table, in_chain), []).append(rule)
    return tuple(
        InputChain(
            name,
            may_refuse=policy == "drop" or _may_refuse(name, rules, set()),
            ours=tuple(
                OurRule(position, rule["handle"], _mark(rule))
                for position, rule in enumerate(rules.get(name, ()))
                if str(rule.get("comment", "")).startswith(TAG_PREFIX)
            ),
        )
        for name, policy in policies.items()
    )


def _may_refuse(name: ChainName, rules: dict[ChainName, _Rules], seen: set[ChainName]) -> bool:
    if name in seen:
        return False
    seen.add(name)
    for rule in rules.get(name, ()):
        for statement in rule.get("expr", ()):
            match statement:
                case {"jump": {"target": target}} | {"goto": {"target": target}}:
                    if _may_refuse(name._replace(chain=target), rules, seen):
                        return True
                case {"xt": {"name": target}} if target in _XT_REFUSALS:
                    return True
                case _ if any(refusal in statement for refusal in _REFUSALS):
                    return True
    return False


def _mark(rule: dict[str, Any]) -> Mark | None:
    match rule["expr"]:
        case [{"match": {"left": {"&": [{"meta": {"key": "mark"}}, mask]}, "right": value}}, *_]:
            return Mark(value, mask)
        case _:
            return None


def _bring(chain: InputChain, marks: Sequence[Mark]) -> bool:
    """Make our rules in the chain so; False where nothing was changed."""
    if chain.accepts(marks):
        return False
    commands = [f"delete rule {chain.name} handle {rule.handle}\n" for rule in chain.ours]
    # Each goes to the top, so the last one goes first.
    commands += [_insertion(chain.name, mark) for mark in reversed(marks)]
    try:
        libnftables.run("".join(commands))
    except ApplyError:
        return False
    return True


def _restore(name: ChainName, marks: Sequence[Mark]) -> None:
    for chain in read():
        if chain.name == name:
            _bring(chain, marks)


def _insertion(name: ChainName, mark: Mark) -> str:
    tag = NftRule(f"input-{mark.value:#x}", Accept(), (MarkIs(mark),)).tag
    return (
        f"insert rule {name} meta mark & {mark.mask:#010x} == {mark.value:#010x}"
        f' counter accept comment "{tag}"\n'
    )
