"""``gateway bench icmp``: the round trip of a ping, beside forwarding without us."""

from __future__ import annotations

import re
import statistics
from functools import partial
from typing import Final, Literal

from gateway.lab.bench.candidates import TARGET, UPSTREAM, Candidate, forwarding
from gateway.lab.bench.metric import Metric
from gateway.lab.bench.rig import Rig
from gateway.lab.bench.suite import Scenario, Sizes, Suite
from gateway.lab.lab import Lab
from gateway.lab.process import LabError, Process

#: Seconds between two requests of one client: each finds everybody asleep.
INTERVAL_S: Final = 0.01
_TIME_MS: Final = re.compile(r"time=([0-9.]+) ms")
_FAMILIES: Final[tuple[Literal[4, 6], ...]] = (4, 6)


def suite() -> Suite:
    """The kernel alone, with connection tracking, and the gateway's ping sockets."""
    tracked = forwarding(tracked=True)
    return Suite(
        "icmp",
        (tracked, _gateway()),
        tuple(_scenario(family) for family in _FAMILIES),
        baseline=tracked.name,
        # Differences of a few hundredths of a millisecond are looked for.
        sizes=Sizes(rounds=9),
    )


def _gateway() -> Candidate:
    """An outbound that the kernel cannot stand in for: it binds its sockets to a device."""

    def start(lab: Lab) -> Process:
        outbounds = {UPSTREAM: lab.socks(UPSTREAM), "wan": {"type": "direct", "interface": "wan0"}}
        rules = ({"protocol": "icmp", "to": "wan"}, {"to": UPSTREAM})
        config = lab.config(*rules, outbounds=outbounds)
        config["inbound"] |= {"icmp": "tun", "workers": 1}
        return lab.start_gateway({**config, "log": {"level": "warning"}}).process

    return Candidate("gateway (ping sockets)", start, "direct")


def _scenario(family: Literal[4, 6]) -> Scenario:
    title = f"ping, IPv{family}"
    metrics = (
        Metric(f"ping_ipv{family}_p50", f"{title}, p50", "ms", "less"),
        Metric(f"ping_ipv{family}_p99", f"{title}, p99", "ms", "less"),
        Metric(f"ping_ipv{family}_lost", f"{title}, lost", "", "less"),
    )
    return Scenario(title, metrics, partial(_measure, family))


def _measure(family: Literal[4, 6], rig: Rig, sizes: Sizes) -> dict[str, float]:
    pair = rig.lab.topology.targets[TARGET]
    target = pair.ipv4 if family == 4 else pair.ipv6
    count = max(20, int(sizes.seconds / INTERVAL_S))
    # The first ones find neighbours and make the flow.
    rig.lab.client("desk").run(["ping", "-n", "-q", "-c", "3", "-i", "0.01", target])
    command = ["ping", "-n", "-c", str(count), "-i", str(INTERVAL_S), "-W", "1", target]
    said = rig.lab.client("desk").run(command, check=False).stdout
    times_ms = [float(found) for found in _TIME_MS.findall(said)]
    if len(times_ms) < 2:
        raise LabError(f"{rig.candidate.name}: nobody answers", said.strip())
    percentiles_ms = statistics.quantiles(times_ms, n=100, method="inclusive")
    key = f"ping_ipv{family}"
    return {
        f"{key}_p50": percentiles_ms[49],
        f"{key}_p99": percentiles_ms[98],
        f"{key}_lost": count - len(times_ms),
    }
