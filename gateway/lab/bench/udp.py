"""``gateway bench udp``: CPU of a datagram, and how long one waits."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Final

from gateway.lab import peers
from gateway.lab.bench import lossless
from gateway.lab.bench.candidates import Candidate
from gateway.lab.bench.metric import Metric
from gateway.lab.bench.rig import Rig
from gateway.lab.bench.senders import UPSTREAM, Kind, sending, start_relay
from gateway.lab.bench.suite import Scenario, Sizes, Suite
from gateway.lab.lab import Lab
from gateway.lab.load import datagrams
from gateway.lab.peers import Upstream
from gateway.lab.process import LabError, Process

#: Datagrams a second.
RATES: Final[dict[Kind, int]] = {"plain": 10_000, "train": 40_000, "many": 4_000}


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
            *lossless.scenarios(tuple(other.name for other in others)),
        ),
        missing=missing,
    )


def _this_gateway() -> Candidate:
    def start(lab: Lab) -> Process:
        start_relay(lab)
        config = lab.config({"to": UPSTREAM}, outbounds={UPSTREAM: lab.socks(UPSTREAM)})
        config["inbound"] = {"udp": "tproxy", "workers": 1}
        return lab.start_gateway({**config, "log": {"level": "warning"}}).process

    return Candidate("gateway", start)


def _other(peer: peers.Peer) -> Candidate:
    def start(lab: Lab) -> Process:
        start_relay(lab)
        directory = lab.directory / "peer"
        directory.mkdir()
        settings = lab.topology.upstreams[UPSTREAM]
        return peer.start(lab.router, Upstream(settings.addresses.ipv4, settings.port), directory)

    return Candidate(peer.name, start, peer=True)


def _measure_load(kind: Kind, rig: Rig, sizes: Sizes) -> dict[str, float]:
    with sending(rig, kind, RATES[kind]) as sender:
        # Every flow must be open: a new one costs what hundreds of its datagrams do.
        warm = 3 * datagrams.FLOWS if kind == "many" else 1
        first, last = sender.window(sizes.seconds, warm)
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
    with sending(rig, kind) as sender:
        sender.window(sizes.seconds)
        times_s = sender.stop()
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
