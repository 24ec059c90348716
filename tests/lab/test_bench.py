"""``gateway bench`` measures everything that it says it does; how much is no test's business."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from traffic import labs_of

from gateway.lab import namespaces, peers
from gateway.lab.gateway_process import ENVIRONMENT, gateway_command
from gateway.lab.process import wait_until

CANDIDATES = {"forwarding", "gateway", "gateway (redirect)"}
#: What the kernel alone, which has no process, cannot have.
OF_PROCESSES = {"connections_cpu", "download1_cpu", "upload8_cpu"}
METRICS = 9
#: Other peers may fail in ways of their own.
PEERS = {"redsocks"} & {peer.name for peer in peers.installed()}


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        gateway_command("bench", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )


def report_of(*arguments: str) -> dict[str, Any]:
    """What a run of the bench says, in one short round."""
    bench = start(*arguments, "--quick", "--json")
    output, errors = bench.communicate(timeout=280)
    assert bench.returncode == 0, errors
    assert not labs_of(bench.pid)
    report: dict[str, Any] = json.loads(output)
    return report


def test_every_cell_has_a_number(tmp_path: Path) -> None:
    path, picture = tmp_path / "bench.json", tmp_path / "bench.svg"
    files = ["--output", str(path), "--svg", str(picture)]
    chosen = ("download, 1 flow", "upload, 8 flows", "new connections")
    options = [word for title in chosen for word in ("--scenario", title)]
    options += [word for name in CANDIDATES | PEERS for word in ("--candidate", name)]
    report = report_of("tcp", "--seconds", "0.2", "--redirect", *options, *files)
    assert report == json.loads(path.read_text())
    assert ElementTree.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert len(report["rows"]) == METRICS
    required = CANDIDATES | PEERS
    for row in report["rows"]:
        expected = required - {"forwarding"} if row["metric"] in OF_PROCESSES else required
        assert set(row["candidates"]) >= expected, (row["metric"], report["failures"])
        if row["metric"].endswith(("_rate", "_p50", "_p99")):
            assert all(cell["median"] > 0 for cell in row["candidates"].values())


def test_what_a_peer_carries_without_loss_is_the_measure() -> None:
    """Both are offered the same part of it, in the same run."""
    chosen = ["--scenario", "without loss", "--scenario", "60 %", "--scenario", "new flow"]
    report = report_of("udp", "--seconds", "0.2", *chosen)
    assert not report["failures"]
    rows = {row["metric"]: row["candidates"] for row in report["rows"]}
    assert all(set(cells) == {"gateway", "sing-box"} for cells in rows.values())
    (highest,) = rows["lossless_rate"]["sing-box"]["samples"]
    assert highest > 0
    # How much of it is the sender's own business: it makes up for what it has slept.
    assert all(cell["median"] > 0 for cell in rows["part_rate"].values())
    assert rows["open_p50"]["gateway"]["median"] > 0


def test_flows_that_are_routed_are_measured_in_both_families() -> None:
    """A run in which one flow went through the SOCKS server would fail."""
    chosen = ["--scenario", "upload, 1 flow", "--scenario", "new connections"]
    report = report_of("direct", "--seconds", "0.2", *chosen)
    gateways = {f"gateway ({kind})" for kind in ("nftables", "nftables, redirect", "iptables")}
    filled = {row["metric"]: row["candidates"] for row in report["rows"]}
    assert set(filled) == {
        *(f"upload1_ipv{family}_rate" for family in (4, 6)),
        *(f"connections_ipv{family}_rate" for family in (4, 6)),
    }
    for candidates in filled.values():
        assert set(candidates) == {"forwarding", "tracked forwarding"} | gateways, report
        assert all(cell["median"] > 0 for cell in candidates.values())


def test_pings_are_measured_in_both_families() -> None:
    """By the kernel alone, and through the TUN."""
    report = report_of("icmp")
    assert not report["failures"]
    rows = {row["metric"]: row["candidates"] for row in report["rows"]}
    assert set(rows) == {f"ping_ipv{f}_{what}" for f in (4, 6) for what in ("p50", "p99", "lost")}
    for family in (4, 6):
        cells = rows[f"ping_ipv{family}_p50"]
        assert set(cells) == {"tracked forwarding", "gateway (ping sockets)"}
        assert all(cell["median"] > 0 for cell in cells.values())


def test_idle_flows_are_counted_with_their_descriptors() -> None:
    report = report_of(
        "idle", "--flows", "200", "--candidate", "gateway", "--candidate", "redsocks"
    )
    rows = {row["metric"]: row["candidates"] for row in report["rows"]}
    (gateway,) = [name for name in rows["idle_flow"] if name.startswith("gateway")]
    assert rows["idle_flows"][gateway]["median"] == 200
    assert rows["idle_flow_fds"][gateway]["median"] == pytest.approx(2, abs=0.2)
    assert set(rows["idle_flow"]) >= PEERS, report["failures"]


def test_every_latency_has_a_number() -> None:
    report = report_of("latency", "--candidate", "gateway", "--candidate", "forwarding")
    rows = {row["metric"]: row["candidates"] for row in report["rows"]}
    assert len(rows) == 5
    gateways = {"gateway", "gateway (no pool)", "gateway (strict, no pool)"}
    required = {"forwarding"} | gateways
    for metric, candidates in rows.items():
        assert set(candidates) >= required, (metric, report["failures"])
        if metric != "connections_failed":
            assert all(cell["median"] > 0 for cell in candidates.values())
    assert min(cell["median"] for cell in rows["link_round_trip"].values()) >= 50
    # One to connect, one to ask: no machine is so fast that it saves one.
    assert rows["first_byte_p50"]["forwarding"]["median"] >= 2 * 50


def test_a_short_soak_is_flat(tmp_path: Path) -> None:
    """It looks on from before the first flow to after the last, and judges what it saw."""
    path, picture = tmp_path / "soak.json", tmp_path / "soak.svg"
    flows = ["--idle-flows", "500", "--active-flows", "20"]
    bench = start("soak", "--minutes", "0.05", *flows, "--output", str(path), "--svg", str(picture))
    output, errors = bench.communicate(timeout=280)
    assert path.exists(), errors
    record = json.loads(path.read_text())
    assert bench.returncode == 0, (errors, record)
    assert output.startswith("500 idle and 20 active flows")
    first, last = record["steady"]
    moments = record["moments"]
    assert last - first >= 4
    assert all(500 < flows <= 520 for flows in moments["flows"][first : last + 1])
    assert all(count > 1000 for count in moments["descriptors"][first : last + 1])
    assert record["blocks"] > 20
    assert record["end"]["flows"] == 0
    assert ElementTree.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert not labs_of(bench.pid)


def test_an_interrupt_leaves_nothing() -> None:
    bench = start("tcp")
    wait_until(lambda: len(labs_of(bench.pid)) > 4, "a second lab to be made", 120)
    bench.send_signal(signal.SIGINT)
    _, errors = bench.communicate(timeout=120)
    assert bench.returncode == 130, errors
    assert not labs_of(bench.pid)
    assert not list(namespaces.FILES.glob(f"gwlab-{bench.pid}-*"))


def test_flows_are_decided_in_the_queue_and_arrive() -> None:
    report = report_of("queue", "--seconds", "0.3", "--candidate", "queue", "--scenario", "IPv4")
    rows = {row["metric"]: row["candidates"] for row in report["rows"]}
    queued = {"gateway (queue, by packet)", "gateway (queue, name looked for)"}
    assert set(rows["flows_ipv4_rate"]) == {"tracked forwarding", *queued}, report["failures"]
    assert all(cell["median"] > 0 for cell in rows["flows_ipv4_rate"].values())
    # An answer takes CPU of somebody: of the kernel alone it would be none.
    assert all(rows["flows_ipv4_cpu"][name]["median"] > 0 for name in queued)


def test_waits_are_counted_while_a_set_changes() -> None:
    report = report_of("reload", "--prefixes", "20000", "--candidate", "2 workers")
    rows = {row["metric"]: row["candidates"] for row in report["rows"]}
    for metric in ("quiet_longest", "reload_longest", "past_longest", "reload_s"):
        assert set(rows[metric]) == {"1 worker", "2 workers"}, report["failures"]
        assert all(cell["median"] > 0 for cell in rows[metric].values())
