"""Several data-plane processes share the port: one that dies takes only its own flows along."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event
from typing import Any

from datagrams import ECHO, ask, served, talking
from traffic import (
    FAMILIES,
    dial,
    peer_seen,
    read,
    read_all,
    running,
    target,
    upstream,
    wait_counter,
    worker_pids,
)

from gateway.flow import Endpoint
from gateway.kernel.privilege import Capability
from gateway.lab import http_server, serve
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.process import wait_until
from gateway.workers import LIFETIME_IDS

WORKERS = 2
FLOWS = 24
#: Bytes of each transfer, of one piece, of all before it is held, and in each second up to there.
SIZE, STEP, HELD, RATE = 6_000_000, 1 << 16, 2_000_000, 1_000_000


class Transfer:
    """Bytes through the gateway, down or up: slow, and held in the middle, until they may hurry."""

    def __init__(self, lab: Lab, number: int, hurry: Event) -> None:
        self._hurry = hurry
        host = target(lab, FAMILIES[number % 2])
        self._sock = dial(lab.client("desk"), host, serve.HTTP_PORT)
        #: Where it has connected from, as the gateway writes it.
        self.client = str(Endpoint(*self._sock.getsockname()[:2]))
        self._work = self._up if number % 4 < 2 else self._down

    def run(self) -> bool:
        """Whether it has arrived; with other bytes than were sent, it fails the test."""
        with self._sock, suppress(ConnectionError):
            return self._work()
        return False

    def _down(self) -> bool:
        self._ask(f"GET /bytes/{SIZE}")
        received = b""
        while part := self._sock.recv(STEP):
            received += part
            self._pause(len(received))
        body = received.partition(b"\r\n\r\n")[2]
        if len(body) < SIZE:
            return False
        assert hashlib.sha256(body).hexdigest() == http_server.digest(SIZE)
        return True

    def _up(self) -> bool:
        self._ask("PUT /upload", f"Content-Length: {SIZE}\r\n")
        data = b"".join(http_server.pieces(SIZE))
        for at in range(0, SIZE, STEP):
            self._sock.sendall(data[at : at + STEP])
            self._pause(at)
        answer = read_all(self._sock).partition(b"\r\n\r\n")[2]
        if not answer:
            return False
        assert json.loads(answer) == {"sha256": http_server.digest(SIZE), "size": SIZE}
        return True

    def _ask(self, line: str, more: str = "") -> None:
        head = f"{line} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n{more}\r\n"
        self._sock.sendall(head.encode())

    def _pause(self, moved: int) -> None:
        self._hurry.wait(STEP / RATE if moved < HELD else None)


def workers_of(gateway: GatewayProcess) -> list[int]:
    """Its workers: not what else it has started for a moment, nor who has died."""

    def is_worker(pid: int) -> bool:
        with suppress(OSError):
            return b"gateway.worker" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return False

    return [pid for pid in worker_pids(gateway) if is_worker(pid)]


def test_the_death_of_a_worker_under_load(module_lab: Lab) -> None:
    """kill -9 ends its flows and no other; those are counted, and another worker takes over."""
    lab, hurry = module_lab, Event()
    # Else a whole download waits in the client's buffer, and its flow has long ended.
    lab.client("desk").sysctl("net.ipv4.tcp_rmem", "4096 65536 65536")
    config = lab.config({"to": "home"}) | {"inbound": {"workers": WORKERS}}
    with running(lab, config) as gateway, ThreadPoolExecutor(FLOWS) as pool, ExitStack() as stack:
        stack.callback(hurry.set)
        transfers = [Transfer(lab, number, hurry) for number in range(FLOWS)]
        results = [pool.submit(transfer.run) for transfer in transfers]
        moving: list[dict[str, Any]] = []

        def all_move() -> bool:
            moving[:] = [f for f in gateway.flows(0) if f["bytes_up"] + f["bytes_down"] > RATE // 2]
            return len(moving) == FLOWS

        wait_until(all_move, "all transfers to be under way")
        shares = Counter(flow["id"] % WORKERS for flow in moving)
        assert len(shares) == WORKERS
        before = workers_of(gateway)
        assert len(before) == WORKERS
        assert gateway.counters()["flows_accepted"] == FLOWS
        os.kill(before[0], signal.SIGKILL)
        wait_counter(gateway, "workers_lost")
        hurry.set()

        arrived = [result.result() for result in results]
        # IPv4 and IPv6 may well use the same port.
        clients = {its.client for its, whole in zip(transfers, arrived, strict=True) if whole}
        survivors = {flow["id"] % WORKERS for flow in moving if flow["client"] in clients}
        assert len(survivors) == 1
        assert len(clients) == shares[survivors.pop()]

        wait_until(lambda: len(workers_of(gateway)) == WORKERS, "a new worker")
        # A transfer is whole a moment before its connection is closed at the other end, too.
        wait_counter(gateway, "closed_done", len(clients))
        counters = gateway.counters()
        assert counters["workers_lost"] == 1
        assert counters["flows_lost"] == FLOWS - len(clients)
        assert counters["closed_done"] == len(clients)

        def carried_anew() -> bool:
            assert peer_seen(lab.client("desk"), target(lab, 4)) in upstream(lab, "home")
            return any(flow["id"] > LIFETIME_IDS for flow in gateway.flows())

        wait_until(carried_anew, "the new worker to carry flows")


def test_one_worker_is_no_second_process(module_lab: Lab) -> None:
    """The gateway itself carries the flows."""
    lab = module_lab
    with running(lab, lab.config({"to": "home"}), workers=1) as gateway:
        assert workers_of(gateway) == []
        assert peer_seen(lab.client("desk"), target(lab, 4)) in upstream(lab, "home")
        assert gateway.counters()["flows_accepted"] == 1
        assert workers_of(gateway) == []


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
        for pid in workers_of(gateway):
            sets = capability_sets(pid)
            # A kernel before 5.17 marks with CAP_NET_ADMIN only.
            assert sets["CapEff"] & ~(1 << Capability.NET_ADMIN) == kept
            assert sets["CapPrm"] == sets["CapEff"]
            assert sets["CapInh"] == sets["CapAmb"] == 0
            assert sets["CapBnd"] == sets["CapEff"]
            assert sets["NoNewPrivs"] == 1
        for family in (4, 6):
            assert peer_seen(desk, target(lab, family)) in upstream(lab, "home")
        before = set(workers_of(gateway))
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
            assert len(workers_of(gateway)) in range(WORKERS + 1, 2 * WORKERS + 1)

            def only_it_lives() -> bool:
                live = [f["destination"] for f in gateway.flows(0) if f["protocol"] == "tcp"]
                return live == [f"{host}:{serve.ECHO_PORT}"]

            wait_until(only_it_lives, "the flows of curl to end, and no other")
        wait_until(lambda: not before & set(workers_of(gateway)), "the old workers to end")
        assert len(workers_of(gateway)) == WORKERS
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
    pids = workers_of(gateway)
    assert len(pids) == WORKERS
    os.kill(gateway.pid, signal.SIGKILL)  # not its group, as ``kill`` does
    gateway.process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "their end")
    assert lab.start_gateway(config).stop() == 0  # which cleans up what was left
