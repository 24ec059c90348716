"""How deep chains lead into one another, which nftables bounds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gateway.plan.model import Chain, Goto, Jump

#: Chains on one way, the hooked one included (NFT_JUMP_STACK_SIZE, net/netfilter/nf_tables_api.c).
NFTABLES_DEPTH: Final = 16


def depth(chains: Iterable[Chain]) -> int:
    """The number of chains on the longest way through them; they lead in no circle."""
    known = {chain.name: chain for chain in chains}
    found: dict[str, int] = {}

    def below(name: str) -> int:
        if name not in found:
            found[name] = 1 + max(map(below, _next(known[name])), default=0)
        return found[name]

    return max((below(name) for name, chain in known.items() if chain.hook), default=0)


def _next(chain: Chain) -> set[str]:
    return {rule.verdict.chain for rule in chain.rules if isinstance(rule.verdict, Goto | Jump)}
