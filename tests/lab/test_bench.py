"""``gateway bench`` measures everything that it says it does; how much is no test's business."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from gateway.lab import namespaces, peers
from gateway.lab.gateway_process import ENVIRONMENT, gateway_command
from gateway.lab.process import wait_until

CANDIDATES = {"forwarding", "gateway", "gateway (redirect)"}
#: What the kernel alone, which has no process, cannot have.
OF_PROCESSES = {
    *("idle_flow", "idle_base", "connections_cpu"),
    *(f"{kind}{flows}_cpu" for kind in ("download", "upload") for flows in (1, 8)),
}
METRICS = 15
#: Other peers may fail in ways of their own.
PEERS = {"redsocks", "sing-box"} & {peer.name for peer in peers.installed()}


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        gateway_command("bench", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )


def labs_of(owner: int) -> list[str]:
    return [name for name in namespaces.listed() if name.startswith(f"gwlab-{owner}-")]


def test_every_cell_has_a_number(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    sizes = ["--quick", "--seconds", "0.3", "--idle-flows", "50"]
    bench = start("tcp", *sizes, "--redirect", "--json", "--output", str(path))
    output, errors = bench.communicate(timeout=120)
    assert bench.returncode == 0, errors
    report = json.loads(output)
    assert report == json.loads(path.read_text())
    assert len(report["rows"]) == METRICS
    required = CANDIDATES | PEERS
    for row in report["rows"]:
        expected = required - {"forwarding"} if row["metric"] in OF_PROCESSES else required
        assert set(row["candidates"]) >= expected, (row["metric"], report["failures"])
        if row["metric"].endswith(("_rate", "_p50", "_p99", "_base")):
            assert all(cell["median"] > 0 for cell in row["candidates"].values())
    assert not labs_of(bench.pid)


def test_every_latency_has_a_number() -> None:
    bench = start("latency", "--quick", "--json")
    output, errors = bench.communicate(timeout=120)
    assert bench.returncode == 0, errors
    report = json.loads(output)
    rows = {row["metric"]: row["candidates"] for row in report["rows"]}
    assert len(rows) == 5
    gateways = {"gateway", "gateway (no pool)", "gateway (strict, no pool)"}
    required = {"forwarding"} | gateways | PEERS
    for metric, candidates in rows.items():
        assert set(candidates) >= required, (metric, report["failures"])
        if metric != "connections_failed":
            assert all(cell["median"] > 0 for cell in candidates.values())
    assert min(cell["median"] for cell in rows["link_round_trip"].values()) >= 50
    # One to connect, one to ask: no machine is so fast that it saves one.
    assert rows["first_byte_p50"]["forwarding"]["median"] >= 2 * 50
    assert not labs_of(bench.pid)


def test_an_interrupt_leaves_nothing() -> None:
    bench = start("tcp")
    wait_until(lambda: len(labs_of(bench.pid)) > 4, "a second lab to be made")
    bench.send_signal(signal.SIGINT)
    _, errors = bench.communicate(timeout=60)
    assert bench.returncode == 130, errors
    assert not labs_of(bench.pid)
    assert not list(namespaces.FILES.glob(f"gwlab-{bench.pid}-*"))
