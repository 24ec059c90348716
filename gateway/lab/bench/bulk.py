"""Scenarios of throughput: so many flows, one way, for the length of a window."""

from __future__ import annotations

from functools import partial
from typing import Literal

from gateway.lab.bench.metric import Metric
from gateway.lab.bench.rig import Rig
from gateway.lab.bench.suite import Scenario, Sizes

Way = Literal["download", "upload"]


def bulk(kind: Way, flows: int) -> Scenario:
    """Over IPv4, with the CPU that the candidate takes."""
    key, title = f"{kind}{flows}", titled(kind, flows)
    return Scenario(
        title,
        (
            Metric(f"{key}_rate", title, "Gbit/s", "more"),
            Metric(f"{key}_cpu", f"{title}: CPU", "s/GB", "less"),
        ),
        partial(_measure, key, kind, flows),
    )


def titled(kind: Way, flows: int) -> str:
    """What a scenario is called."""
    return f"{kind}, {flows} {'flow' if flows == 1 else 'flows'}"


def _measure(key: str, kind: Way, flows: int, rig: Rig, sizes: Sizes) -> dict[str, float]:
    with rig.clients(kind, flows) as clients:
        first, last = clients.window(sizes.seconds)
    gigabytes = (last.received - first.received) / 1e9
    values = {f"{key}_rate": gigabytes * 8 / (last.time_s - first.time_s)}
    if rig.candidate.way == "socks":
        values[f"{key}_cpu"] = (last.cpu_s - first.cpu_s) / gigabytes
    return values
