"""``gateway bench tcp``: bulk, new connections, and idle flows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from typing import Final, Literal

from gateway.lab import peers
from gateway.lab.bench.metric import Metric
from gateway.lab.bench.rig import (
    START_TIMEOUT_S,
    Clients,
    Rig,
    forwarding,
    other,
    this_gateway,
)
from gateway.lab.bench.suite import Scenario, Sizes, Suite

CONCURRENCY: Final = 50


def suite(*, redirect: bool) -> Suite:
    """All that this machine can compare; ``redirect``: this gateway in that mode, too."""
    candidates = [forwarding(), this_gateway()]
    if redirect:
        candidates.append(this_gateway("redirect"))
    candidates += [other(peer) for peer in peers.installed()]
    # Idle flows first: a process keeps what it has once needed, so only a fresh one tells.
    return Suite(
        "tcp",
        tuple(candidates),
        (
            IDLE,
            _bulk("download", 1),
            _bulk("download", 8),
            _bulk("upload", 1),
            _bulk("upload", 8),
            EXCHANGE,
        ),
    )


def _measure_bulk(
    kind: Literal["download", "upload"], flows: int, rig: Rig, sizes: Sizes
) -> dict[str, float]:
    with rig.clients(kind, flows) as clients:
        first, last = clients.window(sizes.seconds)
    gigabytes = (last.received - first.received) / 1e9
    values = {f"{kind}{flows}_rate": gigabytes * 8 / (last.time_s - first.time_s)}
    if rig.process is not None:
        values[f"{kind}{flows}_cpu"] = (last.cpu_s - first.cpu_s) / gigabytes
    return values


def _bulk(kind: Literal["download", "upload"], flows: int) -> Scenario:
    title = f"{kind}, {flows} {'flow' if flows == 1 else 'flows'}"
    return Scenario(
        title,
        (
            Metric(f"{kind}{flows}_rate", title, "Gbit/s", "more"),
            Metric(f"{kind}{flows}_cpu", f"{title}: CPU", "s/GB", "less"),
        ),
        partial(_measure_bulk, kind, flows),
    )


def _measure_exchange(rig: Rig, sizes: Sizes) -> dict[str, float]:
    with rig.clients("exchange", CONCURRENCY) as clients:
        first, last = clients.window(sizes.seconds)
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
    _measure_exchange,
)


def _measure_idle(rig: Rig, sizes: Sizes) -> Mapping[str, float]:
    if rig.process is None:
        return {}
    with rig.clients("idle", 1) as clients:
        _established(clients, 1)
    before = rig.memory_bytes()
    with rig.clients("idle", sizes.idle_flows) as clients:
        _established(clients, sizes.idle_flows)
        after = rig.memory_bytes()
    return {
        "idle_flow": (after - before) / sizes.idle_flows / 1024,
        "idle_base": before / (1 << 20),
    }


def _established(clients: Clients, connections: int) -> None:
    clients.process.wait_until(
        lambda: clients.read("established") == connections,
        f"{connections} idle connections",
        START_TIMEOUT_S,
    )


IDLE: Final = Scenario(
    "idle flows",
    (
        Metric("idle_flow", "memory of an idle flow", "KiB", "less"),
        Metric("idle_base", "memory without flows", "MiB", "less"),
    ),
    _measure_idle,
    once=True,
)
