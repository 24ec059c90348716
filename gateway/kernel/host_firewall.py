"""Diverted packets past this machine's own firewall, where that is nftables.

A packet that is handed to our listener passes the input hook with a port that no rule of
the owner's firewall was made for, and what goes into a TUN passes the forward hook towards an
interface that none knows. An accept in a chain of ours ends that chain alone, so each foreign
base chain that may refuse packets gets rules of ours at its top: our marks, accept, with our
tag. ``iptables-nft`` (1.8.9) reads such a rule in its own tables as
``-m mark --mark V/M -m comment --comment TAG -j ACCEPT``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from gateway.errors import ApplyError, CapabilityError
from gateway.kernel import libnftables
from gateway.kernel.step import Step
from gateway.marks import NFT_TABLE, TAG_PREFIX, Mark
from gateway.plan.matches import MarkIs
from gateway.plan.model import NftRule
from gateway.plan.verdicts import Accept

_FAMILIES = ("inet", "ip", "ip6")
_XT_REFUSALS = ("DROP", "REJECT")

_Objects = Iterable[dict[str, Any]]


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
class ForeignChain:
    """A foreign base chain at the input or the forward hook.

    ``may_refuse``: a packet may be dropped or rejected here, by the policy, by a rule, or
    in a chain that is jumped to.
    """

    name: ChainName
    hook: Literal["input", "forward"]
    may_refuse: bool
    ours: tuple[OurRule, ...]

    def accepts(self, marks: Sequence[Mark]) -> bool:
        """Whether our rules are what they should be for these marks, and stand first."""
        return [(rule.position, rule.mark) for rule in self.ours] == list(enumerate(marks))


def apply(marks: Sequence[Mark], forwarded: Sequence[Mark] = ()) -> Iterator[Step]:
    """Let packets with these marks in, and through; with none, take our rules away.

    Yields each change.

    A chain that nobody but its owner may change (``flags owner``) is passed over:
    ``warnings`` names it.
    """
    for chain in read():
        before = [rule.mark for rule in chain.ours if rule.mark]
        wanted = marks if chain.hook == "input" else forwarded
        if _bring(chain, wanted if chain.may_refuse else ()):
            undo = partial(_restore, chain.name, before)
            yield Step(f"host firewall: chain {chain.name} changed", undo)


def warnings(marks: Sequence[Mark], forwarded: Sequence[Mark] = ()) -> tuple[str, ...]:
    """What stands in the way of packets with these marks now."""
    wanted = {"input": marks, "forward": forwarded}
    return tuple(
        f"chain {chain.name} may refuse diverted packets, and has no rule that lets"
        f" marks {', '.join(map(str, wanted[chain.hook]))} pass: have its owner accept them"
        for chain in read()
        if chain.may_refuse and not chain.accepts(wanted[chain.hook])
    )


def read() -> tuple[ForeignChain, ...]:
    """Every foreign base chain at those hooks; none on a machine without nftables.

    Chain by chain: nft 1.0.6 writes a table's flags to JSON from memory that is not theirs,
    so no listing that holds a table can be trusted.
    """
    try:
        chains = libnftables.query("list chains")
    except (CapabilityError, ApplyError):
        # No library, or no nf_tables in the kernel: there is no such chain.
        return ()
    return parse(chains, lambda name: libnftables.query(f"list chain {name}"))


def parse(
    chains: _Objects, list_chain: Callable[[ChainName], _Objects]
) -> tuple[ForeignChain, ...]:
    """The same from listings (libnftables-json(5)): of all chains, and of one with its rules."""
    found = []
    for item in chains:
        match item:
            case {
                "chain": {
                    "hook": "input" | "forward" as hook,
                    "family": str(family),
                    "table": str(table),
                } as chain
            }:
                name = ChainName(family, table, chain["name"])
                if family in _FAMILIES and name[:2] != ("inet", NFT_TABLE):
                    drops = chain.get("policy") == "drop"
                    found.append(
                        ForeignChain(
                            name,
                            hook,
                            may_refuse=drops or _may_refuse(name, list_chain, set()),
                            ours=_ours(_rules(list_chain(name))),
                        )
                    )
    return tuple(found)


def _rules(listing: _Objects) -> list[dict[str, Any]]:
    return [item["rule"] for item in listing if "rule" in item]


def _ours(rules: list[dict[str, Any]]) -> tuple[OurRule, ...]:
    return tuple(
        OurRule(position, rule["handle"], _mark(rule))
        for position, rule in enumerate(rules)
        if str(rule.get("comment", "")).startswith(TAG_PREFIX)
    )


def _may_refuse(
    name: ChainName, list_chain: Callable[[ChainName], _Objects], seen: set[ChainName]
) -> bool:
    if name in seen:
        return False
    seen.add(name)
    for rule in _rules(list_chain(name)):
        for key, value in _nodes(rule.get("expr", ())):
            match key, value:
                case (("jump" | "goto"), {"target": target}):
                    if _may_refuse(name._replace(chain=target), list_chain, seen):
                        return True
                case (("drop" | "reject"), _):
                    return True
                case "xt", {"name": extension} if extension not in _XT_REFUSALS:
                    pass
                case ("xt", _) | ("vmap", {"data": str()}):
                    # DROP or REJECT of iptables-nft, or what this listing does not show.
                    return True
    return False


def _nodes(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON tree with its value; verdicts may stand deep in a map."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield key, value
            yield from _nodes(value)
    elif isinstance(tree, list):
        for item in tree:
            yield from _nodes(item)


def _mark(rule: dict[str, Any]) -> Mark | None:
    match rule["expr"]:
        case [{"match": {"left": {"&": [{"meta": {"key": "mark"}}, mask]}, "right": value}}, *_]:
            return Mark(value, mask)
        case _:
            return None


def _bring(chain: ForeignChain, marks: Sequence[Mark]) -> bool:
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
