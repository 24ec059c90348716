"""Where chains hang in netfilter, and in which place among those of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from gateway.plan.model import Chain, Hook, NftRule

#: Just before the priorities that others use (mangle -150, dstnat -100, filter 0): a port that
#: another program publishes by DNAT is ours first, and a packet is marked before it is filtered.
_PRIORITY: Final = {"mangle": -155, "nat": -105, "filter": -5}


def hooked(
    name: str,
    point: Literal["prerouting", "output", "forward", "input"],
    table: Literal["mangle", "nat", "filter"],
    rules: Sequence[NftRule],
) -> Chain:
    """A chain of these rules, at a point of the kernel's way for packets."""
    return Chain(name, table, tuple(rules), Hook(point, table, _PRIORITY[table]))
