"""``gateway bench direct``: what an address rule sends direct, beside forwarding without us."""

from __future__ import annotations

from functools import partial
from typing import Final, Literal

from gateway.lab.bench.bulk import routed_bulk
from gateway.lab.bench.candidates import forwarding, routed
from gateway.lab.bench.metric import Metric
from gateway.lab.bench.rig import Rig
from gateway.lab.bench.suite import Scenario, Sizes, Suite

CONCURRENCY: Final = 50
_FAMILIES: Final[tuple[Literal[4, 6], ...]] = (4, 6)


def suite() -> Suite:
    """Both backends, and what the kernel does alone, with and without connection tracking."""
    tracked = forwarding(tracked=True)
    return Suite(
        "direct",
        (forwarding(), tracked, routed("nftables"), routed("iptables")),
        tuple(scenario for family in _FAMILIES for scenario in _scenarios(family)),
        baseline=tracked.name,
        # A difference of a few per cent is looked for.
        sizes=Sizes(rounds=9),
    )


def _scenarios(family: Literal[4, 6]) -> tuple[Scenario, ...]:
    title = f"new connections, IPv{family}"
    key = f"connections_ipv{family}_rate"
    return (
        routed_bulk("download", 1, family),
        routed_bulk("download", 8, family),
        routed_bulk("upload", 1, family),
        routed_bulk("upload", 8, family),
        Scenario(title, (Metric(key, title, "1/s", "more"),), partial(_measure, key, family)),
    )


def _measure(key: str, family: Literal[4, 6], rig: Rig, sizes: Sizes) -> dict[str, float]:
    with rig.clients("exchange", CONCURRENCY, family) as clients:
        first, last = clients.window(sizes.seconds)
    return {key: (last.exchanges - first.exchanges) / (last.time_s - first.time_s)}
