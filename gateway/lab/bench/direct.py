"""``gateway bench direct``: what an address rule sends direct, beside forwarding without us.

A difference of a few per cent is looked for, where a shared machine's speed changes by more from
one second to the next. So all clients stay connected, and move in turn, for a tenth of a second
each, many times over.

Bulk goes up only: what is forwarded is the same both ways, but a client that rests while it is
sent to finds a sender that is far behind its own time-outs.
"""

from __future__ import annotations

from typing import Final, Literal

from gateway.lab.bench.bulk import titled
from gateway.lab.bench.candidates import forwarding, routed
from gateway.lab.bench.metric import Metric
from gateway.lab.bench.rig import Rig
from gateway.lab.bench.suite import Scenario, Sizes, Suite

CONCURRENCY: Final = 50
_FAMILIES: Final[tuple[Literal[4, 6], ...]] = (4, 6)


def suite() -> Suite:
    """Both backends, and what the kernel does alone, with and without connection tracking.

    Redirection does without rules of policy routing, which the kernel looks through for each
    packet.
    """
    tracked = forwarding(tracked=True)
    ours = (routed("nftables"), routed("nftables", "redirect"), routed("iptables"))
    return Suite(
        "direct",
        (forwarding(), tracked, *ours),
        tuple(scenario for family in _FAMILIES for scenario in _scenarios(family)),
        baseline=tracked.name,
        sizes=Sizes(rounds=60, seconds=0.1),
    )


def _scenarios(family: Literal[4, 6]) -> tuple[Scenario, ...]:
    return (
        _bulk(1, family),
        _bulk(8, family),
        _exchange(family),
    )


def _bulk(flows: int, family: Literal[4, 6]) -> Scenario:
    key, title = f"upload{flows}_ipv{family}_rate", f"{titled('upload', flows)}, IPv{family}"

    def measure(rig: Rig, sizes: Sizes) -> dict[str, float]:
        first, last = rig.resting("upload", flows, family).slice(sizes.seconds)
        return {key: (last.received - first.received) * 8e-9 / (last.time_s - first.time_s)}

    return Scenario(title, (Metric(key, title, "Gbit/s", "more"),), measure)


def _exchange(family: Literal[4, 6]) -> Scenario:
    key, title = f"connections_ipv{family}_rate", f"new connections, IPv{family}"

    def measure(rig: Rig, sizes: Sizes) -> dict[str, float]:
        first, last = rig.resting("exchange", CONCURRENCY, family).slice(sizes.seconds)
        return {key: (last.exchanges - first.exchanges) / (last.time_s - first.time_s)}

    return Scenario(title, (Metric(key, title, "1/s", "more"),), measure)
