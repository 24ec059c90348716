"""``gateway bench queue``: new flows that one worker decides by their first packet.

Every datagram of the client begins a flow. What arrives at the far end was decided direct, by
a rule that the kernel cannot judge (``classify: nfqueue``): asked of the packet alone, or of a
name that is looked for in it. Beside it, flows that a kernel rule decides, and plain forwarding,
which is as much as the client can send.
"""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from gateway.lab.bench.candidates import TARGET, UPSTREAM, Candidate, forwarding, routed
from gateway.lab.bench.metric import Metric
from gateway.lab.bench.rig import WARM_UP_S, Rig
from gateway.lab.bench.suite import Scenario, Sizes, Suite
from gateway.lab.gateway_process import ENVIRONMENT
from gateway.lab.lab import Lab
from gateway.lab.load import new_flows
from gateway.lab.load.counters import Counters
from gateway.lab.process import READY_TIMEOUT_S, Process, happens

#: Rules that lead a flow to ``direct``, and that only a program can judge.
BY_PACKET: Final = ({"weekday": "mon-sun", "to": "direct"}, {"to": UPSTREAM})
BY_NAME: Final = ({"domain": "+.blocked.example", "to": "reject"}, {"to": "direct"})
#: Connection tracking forgets a flow without an answer after so long (seconds): a table full of
#: them would be measured instead.
_FORGOTTEN_S: Final = 1
#: The far end is silent: else it would answer each flow that nobody there wanted it.
_SINK: Final = """
table inet sink
delete table inet sink
table inet sink {
    chain prerouting {
        type filter hook prerouting priority raw
        meta l4proto udp drop
    }
}
"""
_FAMILIES: Final[tuple[Literal[4, 6], ...]] = (4, 6)

_runs = itertools.count()


def suite() -> Suite:
    """One worker, in both of the ways in which a first packet tells."""
    tracked = forwarding(tracked=True)
    return Suite(
        "queue",
        (
            tracked,
            routed("nftables"),
            _queued("gateway (queue, by packet)", *BY_PACKET),
            _queued("gateway (queue, name looked for)", *BY_NAME),
        ),
        tuple(_scenario(family) for family in _FAMILIES),
        baseline=tracked.name,
    )


def _queued(name: str, *rules: dict[str, Any]) -> Candidate:
    def start(lab: Lab) -> Process:
        config = {**lab.config(*rules), "log": {"level": "warning"}}
        config["inbound"] = {"classify": "nfqueue", "workers": 1}
        lab.router.sysctl("net.ipv4.ip_forward", "1")
        lab.router.sysctl("net.ipv6.conf.all.forwarding", "1")
        return lab.start_gateway(config, backend="auto").process

    return Candidate(name, start, "direct")


def _scenario(family: Literal[4, 6]) -> Scenario:
    title = f"new flows, IPv{family}"
    return Scenario(
        title,
        (
            Metric(f"flows_ipv{family}_rate", title, "1000/s", "more"),
            Metric(f"flows_ipv{family}_cpu", f"{title}: CPU", "µs each", "less"),
        ),
        partial(_measure, family),
    )


@dataclass(frozen=True, slots=True)
class _Count:
    time_s: float
    cpu_s: float
    arrived: int

    @classmethod
    def of(cls, rig: Rig) -> _Count:
        links = rig.lab.internet.run(["cat", "/proc/net/dev"]).stdout
        (received,) = re.findall(r"wan0: *[0-9]+ +([0-9]+)", links)
        return cls(time.monotonic(), rig.cpu_s(), int(received))


def _measure(family: Literal[4, 6], rig: Rig, sizes: Sizes) -> dict[str, float]:
    for name in ("udp_timeout", "udp_timeout_stream"):
        rig.lab.router.sysctl(f"net.netfilter.nf_conntrack_{name}", str(_FORGOTTEN_S))
    rig.lab.internet.run(["nft", "-f", "-"], stdin=_SINK)
    with _flood(rig, family):
        time.sleep(WARM_UP_S)
        first = _Count.of(rig)
        time.sleep(sizes.seconds)
        # On a busy machine somebody may have stood still for as long as that.
        happens(lambda: _Count.of(rig).arrived > first.arrived, READY_TIMEOUT_S)
        last = _Count.of(rig)
    arrived = last.arrived - first.arrived
    values = {f"flows_ipv{family}_rate": arrived / (last.time_s - first.time_s) / 1e3}
    if rig.process is not None and arrived:
        values[f"flows_ipv{family}_cpu"] = (last.cpu_s - first.cpu_s) / arrived * 1e6
    return values


@contextmanager
def _flood(rig: Rig, family: Literal[4, 6]) -> Iterator[None]:
    lab = rig.lab
    target = lab.topology.targets[TARGET]
    path = lab.directory / f"flood{next(_runs)}.counters"
    counters = Counters(path, new_flows.SENT, create=True)
    command = [sys.executable, "-m", "gateway.lab.load.new_flows", str(path)]
    command.append(target.ipv4 if family == 4 else target.ipv6)
    process = lab.client("desk").start(path.stem, command, ENVIRONMENT)
    process.wait_until(lambda: counters.read()["sent"] > 0, "the first datagram")
    try:
        yield
    finally:
        process.stop()
