"""``gateway bench tcp``: bulk and new connections through a SOCKS5 server that is near."""

from __future__ import annotations

import statistics
from typing import Final

from gateway.lab import peers
from gateway.lab.bench.bulk import bulk
from gateway.lab.bench.candidates import forwarding, others, this_gateway
from gateway.lab.bench.metric import Metric
from gateway.lab.bench.rig import Rig
from gateway.lab.bench.suite import Scenario, Sizes, Suite

CONCURRENCY: Final = 50


def suite(*, redirect: bool) -> Suite:
    """All that this machine can compare; ``redirect``: this gateway in that mode, too."""
    candidates = [forwarding(), this_gateway(), this_gateway(workers=1)]
    if redirect:
        candidates.append(this_gateway("redirect"))
    return Suite(
        "tcp",
        (*candidates, *others()),
        (
            bulk("download", 1),
            bulk("download", 8),
            bulk("upload", 1),
            bulk("upload", 8),
            EXCHANGE,
        ),
        missing=peers.missing(),
    )


def _measure(rig: Rig, sizes: Sizes) -> dict[str, float]:
    with rig.clients("exchange", CONCURRENCY) as clients:
        first, last = clients.window(sizes.seconds, exchanges=2)
        times_s = clients.first_bytes_s()[first.exchanges : last.exchanges]
    exchanges = last.exchanges - first.exchanges
    percentiles = statistics.quantiles(times_s, n=100)
    values = {
        "connections_rate": exchanges / (last.time_s - first.time_s),
        "first_byte_p50": percentiles[49] * 1e3,
        "first_byte_p99": percentiles[98] * 1e3,
        "connections_failed": clients.read("failed"),
    }
    if rig.process is not None:
        values["connections_cpu"] = (last.cpu_s - first.cpu_s) / exchanges * 1e6
    return values


EXCHANGE: Final = Scenario(
    "new connections",
    (
        Metric("connections_rate", "new connections", "1/s", "more"),
        Metric("connections_cpu", "new connections: CPU", "µs each", "less"),
        Metric("first_byte_p50", "connect to first byte, p50", "ms", "less"),
        Metric("first_byte_p99", "connect to first byte, p99", "ms", "less"),
        Metric("connections_failed", "new connections: failed", "", "less"),
    ),
    _measure,
)
