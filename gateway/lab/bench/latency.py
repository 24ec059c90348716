"""``gateway bench latency``: the first byte, where the SOCKS server is far away."""

from __future__ import annotations

import statistics
from typing import Final

from gateway.lab import peers
from gateway.lab.bench.candidates import forwarding, others, this_gateway
from gateway.lab.bench.metric import Metric
from gateway.lab.bench.rig import Rig
from gateway.lab.bench.suite import Scenario, Sizes, Suite

#: From the router to the SOCKS server and back, as far as the link makes it.
ROUND_TRIP_MS: Final = 50
#: Enough for percentiles, and too few for any CPU to be what they wait for.
CONCURRENCY: Final = 20


def suite() -> Suite:
    """All that this machine can compare."""
    candidates = (
        forwarding(),
        this_gateway(),
        this_gateway(pool="off"),
        this_gateway(handshake="strict", pool="off"),
        *others(),
    )
    return Suite(
        "latency",
        candidates,
        (FIRST_BYTE,),
        wan_delay_ms=ROUND_TRIP_MS / 2,
        missing=peers.missing(),
    )


def _measure(rig: Rig, sizes: Sizes) -> dict[str, float]:
    round_trip_s = rig.round_trip_s()
    with rig.clients("exchange", CONCURRENCY) as clients:
        first, last = clients.window(sizes.seconds, exchanges=2)
        times_s = clients.first_bytes_s()[first.exchanges : last.exchanges]
        failed = clients.read("failed")
    percentiles_s = statistics.quantiles(times_s, n=100, method="inclusive")
    return {
        "round_trips": percentiles_s[49] / round_trip_s,
        "first_byte_p50": percentiles_s[49] * 1e3,
        "first_byte_p99": percentiles_s[98] * 1e3,
        "link_round_trip": round_trip_s * 1e3,
        "connections_failed": failed,
    }


FIRST_BYTE: Final = Scenario(
    "first byte over a slow link",
    (
        Metric("round_trips", "connect to first byte, p50", "round trips", "less"),
        Metric("first_byte_p50", "connect to first byte, p50", "ms", "less"),
        Metric("first_byte_p99", "connect to first byte, p99", "ms", "less"),
        Metric("link_round_trip", "ping to the SOCKS server, p50", "ms", "less"),
        Metric("connections_failed", "connections that failed", "", "less"),
    ),
    _measure,
)
