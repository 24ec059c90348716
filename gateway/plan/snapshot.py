"""What is installed on a machine of ours, as values: the observed twin of a ``Plan``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gateway.marks import NFT_TABLE
from gateway.plan.addresses import Family, Network
from gateway.plan.model import Backend, IpRule, Plan, Route
from gateway.plan.xt import xt_tables


class ChainKey(NamedTuple):
    """Names a chain, as the kernel does.

    nftables: ``("gateway", "lan", "inet")``. iptables: ``("mangle", "GATEWAY_LAN",
    "ipv4")``; the built-in chains that lead to ours stand there too, by their own name
    (``("mangle", "PREROUTING", "ipv4")``), with our rules alone.
    """

    table: str
    chain: str
    family: Literal["inet", "ipv4", "ipv6"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is ours, found by tag, name and protocol number; nothing of anyone else's.

    ``chains``: the tags of each chain's rules, in order; a rule without a tag of ours in a
    chain of ours stands as an empty text. ``sets``: the prefixes of each set. ``sysctls``:
    present values by dotted name, at least of those that a plan may ask for. ``restore``:
    the values that the sysctls which we changed had before.
    """

    chains: Mapping[ChainKey, tuple[str, ...]] = field(default_factory=dict)
    sets: Mapping[str, frozenset[Network]] = field(default_factory=dict)
    ip_rules: frozenset[IpRule] = frozenset()
    routes: frozenset[Route] = frozenset()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    restore: Mapping[str, str] = field(default_factory=dict)


def expected_chains(plan: Plan) -> dict[ChainKey, tuple[str, ...]]:
    """The chains of a snapshot taken where exactly this plan is installed."""
    if plan.backend is Backend.NFTABLES:
        return {
            ChainKey(NFT_TABLE, chain.name, "inet"): tuple(rule.tag for rule in chain.rules)
            for chain in plan.chains
        }
    chains: dict[ChainKey, tuple[str, ...]] = {}
    for family in Family:
        for table in xt_tables(plan, family):
            for chain in table.chains:
                key = ChainKey(table.name, chain.name, family.value)
                chains[key] = tuple(rule.tag for rule in chain.rules)
                if chain.hook:
                    chains[ChainKey(table.name, chain.hook, family.value)] = (chain.jump.tag,)
    return chains
