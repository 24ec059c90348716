"""``gateway bench udp``: CPU of a datagram, and how long one waits."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from gateway.lab import peers
from gateway.lab.bench.candidates import TARGET, Candidate
from gateway.lab.bench.metric import Metric
from gateway.lab.bench.rig import START_TIMEOUT_S, WARM_UP_S, Rig
from gateway.lab.bench.suite import Scenario, Sizes, Suite
from gateway.lab.gateway_process import ENVIRONMENT
from gateway.lab.lab import Lab
from gateway.lab.load import datagrams
from gateway.lab.load.counters import Counters
from gateway.lab.peers import Upstream
from gateway.lab.process import LabError, Process

Kind = Literal["plain", "train", "many", "echo", "open"]

#: The relay's address is that of an upstream which nothing else serves here.
UPSTREAM: Final = "spare"
#: Datagrams a second.
RATES: Final[dict[Kind, int]] = {"plain": 10_000, "train": 40_000, "many": 4_000}
_COUNTERS: Final = "relay.counters"


def suite() -> Suite:
    """Compare with sing-box, the one peer that relays UDP."""
    others = [_other(peer) for peer in peers.udp() if peer.find() is not None]
    missing = tuple(peer.name for peer in peers.udp() if peer.find() is None)
    return Suite(
        "udp",
        (_this_gateway(), *others),
        (
            _load("plain", "one flow, plain sender"),
            _load("train", "one flow, sender with GSO"),
            _load("many", "1,000 flows, small datagrams"),
            _waits("echo", "datagram and answer"),
            _waits("open", "new flow to first answer"),
        ),
        missing=missing,
    )


def _this_gateway() -> Candidate:
    def start(lab: Lab) -> Process:
        _start_relay(lab)
        config = lab.config({"to": UPSTREAM}, outbounds={UPSTREAM: lab.socks(UPSTREAM)})
        config["inbound"] = {"udp": "tproxy", "workers": 1}
        return lab.start_gateway({**config, "log": {"level": "warning"}}).process

    return Candidate("gateway", start)


def _other(peer: peers.Peer) -> Candidate:
    def start(lab: Lab) -> Process:
        _start_relay(lab)
        directory = lab.directory / "peer"
        directory.mkdir()
        settings = lab.topology.upstreams[UPSTREAM]
        return peer.start(lab.router, Upstream(settings.addresses.ipv4, settings.port), directory)

    return Candidate(peer.name, start, peer=True)


def _start_relay(lab: Lab) -> None:
    settings = lab.topology.upstreams[UPSTREAM]
    _run(lab, "internet", _COUNTERS, "serve", settings.addresses.ipv4, settings.port)


def _run(lab: Lab, machine: str, counters: str, kind: str, host: str, number: int) -> Process:
    path = lab.directory / counters
    Counters(path, datagrams.ENDS, create=True)
    command = [sys.executable, "-m", "gateway.lab.load.datagrams", str(path), kind, host]
    process = lab.machines[machine].start(path.stem, [*command, str(number)], ENVIRONMENT)
    if kind == "serve":
        process.wait_until(lambda: datagrams.READY in process.log, "the relay", START_TIMEOUT_S)
    return process


@dataclass(frozen=True, slots=True)
class _Count:
    """All counts at one moment."""

    time_s: float
    cpu_s: float
    arrived: int
    answered: int
    sent: int


@contextmanager
def _sending(rig: Rig, kind: Kind) -> Iterator[tuple[Process, Path]]:
    lab = rig.lab
    name = f"{kind}{time.monotonic_ns()}.counters"
    target = lab.topology.targets[TARGET].ipv4
    process = _run(lab, "desk", name, kind, target, RATES.get(kind, 1))
    try:
        yield process, lab.directory / name
    finally:
        process.stop()


def _window(rig: Rig, client: Path, seconds: float, warm: int = 1) -> tuple[_Count, _Count]:
    """Two counts so far apart, once so many datagrams have arrived."""
    relay = Counters(rig.lab.directory / _COUNTERS, datagrams.ENDS)
    sender = Counters(client, datagrams.ENDS)

    def count() -> _Count:
        sent = sender.read()
        arrived = relay.read()["arrived"]
        return _Count(time.monotonic(), rig.cpu_s(), arrived, sent["answered"], sent["sent"])

    begin = count().arrived
    until = time.monotonic() + START_TIMEOUT_S
    while count().arrived < begin + warm:
        if time.monotonic() > until:
            raise LabError(f"fewer than {warm} datagrams arrive")
        time.sleep(0.01)
    time.sleep(WARM_UP_S)
    first = count()
    time.sleep(seconds)
    return first, count()


def _measure_load(kind: Kind, rig: Rig, sizes: Sizes) -> dict[str, float]:
    with _sending(rig, kind) as (_, counters):
        # Every flow must be open: a new one costs what hundreds of its datagrams do.
        warm = 3 * datagrams.FLOWS if kind == "many" else 1
        first, last = _window(rig, counters, sizes.seconds, warm)
    arrived, sent = last.arrived - first.arrived, last.sent - first.sent
    if kind == "many":
        arrived, sent = arrived + last.answered - first.answered, 2 * sent
    return {
        f"{kind}_cpu": (last.cpu_s - first.cpu_s) / max(1, arrived) * 1e6,
        f"{kind}_rate": arrived / (last.time_s - first.time_s) / 1e3,
        f"{kind}_lost": max(0.0, 100 * (1 - arrived / max(1, sent))),
    }


def _load(kind: Kind, title: str) -> Scenario:
    return Scenario(
        title,
        (
            Metric(f"{kind}_cpu", f"{title}: CPU", "µs each", "less"),
            Metric(f"{kind}_rate", f"{title}: carried", "1000/s", "more"),
            Metric(f"{kind}_lost", f"{title}: lost", "%", "less"),
        ),
        partial(_measure_load, kind),
    )


def _measure_waits(kind: Kind, rig: Rig, sizes: Sizes) -> dict[str, float]:
    with _sending(rig, kind) as (process, counters):
        _window(rig, counters, sizes.seconds)
        process.stop()
        times_s: list[float] = json.loads(process.log[-1])
    if len(times_s) < 2:
        raise LabError("too few answers for percentiles", "choose a longer window")
    percentiles_s = statistics.quantiles(times_s, n=100, method="inclusive")
    return {f"{kind}_p50": percentiles_s[49] * 1e3, f"{kind}_p99": percentiles_s[98] * 1e3}


def _waits(kind: Kind, title: str) -> Scenario:
    return Scenario(
        title,
        tuple(Metric(f"{kind}_{p}", f"{title}, {p}", "ms", "less") for p in ("p50", "p99")),
        partial(_measure_waits, kind),
    )
