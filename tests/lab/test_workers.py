"""Several data-plane processes share the port: one that dies takes only its own flows along."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from datagrams import ECHO, ask, served, talking
from traffic import (
    FAMILIES,
    dial,
    peer_seen,
    read,
    running,
    target,
    upstream,
    url,
    wait_counter,
    worker_pids,
)

from gateway.flow import Endpoint
from gateway.kernel.privilege import Capability
from gateway.lab import http_server, serve
from gateway.lab.lab import Lab
from gateway.lab.process import Process, wait_until
from gateway.workers import LIFETIME_IDS

WORKERS = 2
FLOWS = 24
#: Bytes of each transfer, and in each second: long enough to be killed in the middle.
SIZE, RATE = 6_000_000, 1_000_000


def transfer(lab: Lab, number: int, payload: Path) -> Process:
    """A curl that takes some seconds, down or up; its log is its own address and port alone."""
    host, name = target(lab, FAMILIES[number % 2]), f"curl{number}"
    what = [url(host, f"/bytes/{SIZE}")]
    if number % 4 < 2:
        what = ["-T", str(payload), url(host, "/upload")]
    report = ["-w", "%{local_ip} %{local_port}", "-o", str(lab.directory / name)]
    command = ["curl", "-sgf", "-m", "60", "--limit-rate", str(RATE), *report, *what]
    return lab.client("desk").start(name, command)


def whole(lab: Lab, number: int, process: Process) -> bool:
    """Whether that transfer arrived; with other bytes than were sent, it fails the test."""
    if process.wait(60):
        return False
    received = (lab.directory / process.name).read_bytes()
    if number % 4 < 2:
        assert json.loads(received) == {"sha256": http_server.digest(SIZE), "size": SIZE}
    else:
        assert hashlib.sha256(received).hexdigest() == http_server.digest(SIZE)
    return True


def client(process: Process) -> str:
    """Where it connected from, as the gateway writes it."""
    host, port = process.log[0].split()
    return str(Endpoint(host, int(port)))


def test_the_death_of_a_worker_under_load(module_lab: Lab, tmp_path: Path) -> None:
    """kill -9 ends its flows and no other; those are counted, and another worker takes over."""
    lab, payload = module_lab, tmp_path / "payload"
    payload.write_bytes(b"".join(http_server.pieces(SIZE)))
    # Else a whole download waits in the client's buffer, and its flow has long ended.
    lab.client("desk").sysctl("net.ipv4.tcp_rmem", "4096 65536 65536")
    config = lab.config({"to": "home"}) | {"inbound": {"workers": WORKERS}}
    with running(lab, config) as gateway:
        curls = [transfer(lab, number, payload) for number in range(FLOWS)]
        moving: list[dict[str, Any]] = []

        def all_move() -> bool:
            moving[:] = [f for f in gateway.flows(0) if f["bytes_up"] + f["bytes_down"] > RATE // 2]
            return len(moving) == FLOWS

        wait_until(all_move, "all transfers to be under way")
        shares = Counter(flow["id"] % WORKERS for flow in moving)
        assert len(shares) == WORKERS
        before = worker_pids(gateway)
        assert len(before) == WORKERS
        assert gateway.counters()["flows_accepted"] == FLOWS
        os.kill(before[0], signal.SIGKILL)
        wait_counter(gateway, "workers_lost")

        done = {number for number, curl in enumerate(curls) if whole(lab, number, curl)}
        # IPv4 and IPv6 may well use the same port.
        clients = {client(curls[number]) for number in done}
        survivors = {flow["id"] % WORKERS for flow in moving if flow["client"] in clients}
        assert len(survivors) == 1
        assert len(done) == shares[survivors.pop()]

        wait_until(lambda: len(worker_pids(gateway)) == WORKERS, "a new worker")
        # A transfer is whole a moment before its connection is closed at the other end, too.
        wait_counter(gateway, "closed_done", len(done))
        counters = gateway.counters()
        assert counters["workers_lost"] == 1
        assert counters["flows_lost"] == FLOWS - len(done)
        assert counters["closed_done"] == len(done)
        for _ in range(FLOWS):
            assert peer_seen(lab.client("desk"), target(lab, 4)) in upstream(lab, "home")
        assert any(flow["id"] > LIFETIME_IDS for flow in gateway.flows())


def test_one_worker_is_no_second_process(module_lab: Lab) -> None:
    """The gateway itself carries the flows."""
    lab = module_lab
    with running(lab, lab.config({"to": "home"}), workers=1) as gateway:
        assert worker_pids(gateway) == []
        assert peer_seen(lab.client("desk"), target(lab, 4)) in upstream(lab, "home")
        assert gateway.counters()["flows_accepted"] == 1
        assert worker_pids(gateway) == []


def capability_sets(pid: int) -> dict[str, int]:
    status = Path(f"/proc/{pid}/status").read_text()
    pairs = [line.split() for line in status.splitlines() if line.startswith(("Cap", "NoNew"))]
    return {name.rstrip(":"): int(value, 16) for name, value in pairs}


def test_workers_keep_only_what_carrying_flows_takes(module_lab: Lab, mode: str) -> None:
    """And carry flows with it.

    Where a reload takes more, others take their place; they stay as long as their flows do.
    """
    lab, desk = module_lab, module_lab.client("desk")
    config = lab.config({"to": "home"}) | {"inbound": {"workers": WORKERS, "udp": "off"}}
    with running(lab, config, mode=mode) as gateway:
        kept = 1 << Capability.NET_RAW | 1 << Capability.NET_BIND_SERVICE
        for pid in worker_pids(gateway):
            sets = capability_sets(pid)
            # A kernel before 5.17 marks with CAP_NET_ADMIN only.
            assert sets["CapEff"] & ~(1 << Capability.NET_ADMIN) == kept
            assert sets["CapPrm"] == sets["CapEff"]
            assert sets["CapInh"] == sets["CapAmb"] == 0
            assert sets["CapBnd"] == sets["CapEff"]
            assert sets["NoNewPrivs"] == 1
        for family in (4, 6):
            assert peer_seen(desk, target(lab, family)) in upstream(lab, "home")
        before = set(worker_pids(gateway))
        host = target(lab, 4)
        with (
            served() as servers,
            dial(desk, host, serve.ECHO_PORT) as flow,
            talking(desk, host) as datagrams,
        ):
            servers.add(lab.internet, host, ECHO)
            flow.sendall(b"old")
            assert read(flow, 3) == b"old"
            inbound = {"workers": WORKERS, "tcp": mode, "udp": "tproxy"}
            ways = {"home": lab.socks("home"), "wan": {"type": "direct", "interface": "wan0"}}
            carried = lab.config({"protocol": "udp", "to": "wan"}, {"to": "home"}, outbounds=ways)
            gateway.reload(carried | {"inbound": inbound})
            for _ in range(2 * WORKERS):
                assert peer_seen(desk, host) in upstream(lab, "home")
            assert ask(datagrams) == b"hello"
            flow.sendall(b"still")
            assert read(flow, 5) == b"still"
            assert len([*worker_pids(gateway)]) in range(WORKERS + 1, 2 * WORKERS + 1)
            live = [flow["destination"] for flow in gateway.flows(0) if flow["protocol"] == "tcp"]
            assert live == [f"{host}:{serve.ECHO_PORT}"]
        wait_until(lambda: not before & set(worker_pids(gateway)), "the old workers to end")
        assert len(worker_pids(gateway)) == WORKERS
        counters = gateway.counters()
        assert counters["flows_accepted"] == 2 + 2 * WORKERS + 1
        assert "workers_lost" not in counters


def test_a_reload_reaches_every_worker(module_lab: Lab) -> None:
    """After it no flow of any worker takes the old way."""
    lab, desk = module_lab, module_lab.client("desk")
    inbound = {"inbound": {"workers": WORKERS}}
    with running(lab, lab.config({"to": "home"}) | inbound) as gateway:
        assert peer_seen(desk, target(lab, 6)) in upstream(lab, "home")
        gateway.reload(lab.config({"to": "work"}) | inbound)
        for _ in range(FLOWS):
            assert peer_seen(desk, target(lab, 6)) in upstream(lab, "work")


def test_no_worker_outlives_the_gateway(module_lab: Lab) -> None:
    """kill -9 of the parent ends them all: nothing accepts what nobody controls."""
    lab = module_lab
    config = lab.config({"to": "home"}) | {"inbound": {"workers": WORKERS}}
    gateway = lab.start_gateway(config)
    pids = worker_pids(gateway)
    assert len(pids) == WORKERS
    gateway.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "their end", 10)
    assert lab.start_gateway(config).stop() == 0  # which cleans up what was left
