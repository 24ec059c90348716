"""Several data-plane processes share the port: one that dies takes only its own flows along."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

from traffic import dial, peer_seen, running, target, upstream, wait_counter

from gateway.lab import serve
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.process import wait_until

WORKERS = 2
FLOWS = 24


def worker_pids(gateway: GatewayProcess) -> list[int]:
    """The gateway's child processes."""
    children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


def echoes(sock: socket.socket) -> bool:
    """Whether the flow still carries bytes both ways."""
    try:
        sock.sendall(b"ping")
        return sock.recv(4, socket.MSG_WAITALL) == b"ping"
    except OSError:
        return False


def test_flows_are_shared_and_outlive_the_death_of_the_other_worker(module_lab: Lab) -> None:
    """Of many flows some are with each worker; kill -9 ends those of one, and it comes back."""
    lab, desk = module_lab, module_lab.client("desk")
    with ExitStack() as stack:
        config = lab.config({"to": "home"}) | {"inbound": {"workers": WORKERS}}
        gateway = stack.enter_context(running(lab, config))
        flows = [
            stack.enter_context(dial(desk, target(lab, 4), serve.ECHO_PORT)) for _ in range(FLOWS)
        ]
        assert all(map(echoes, flows))
        assert gateway.counters()["flows_accepted"] == FLOWS
        live = [flow for flow in gateway.flows() if flow["state"] == "relaying"]
        assert len({flow["id"] for flow in live}) == FLOWS
        shares = [sum(flow["id"] % WORKERS == index for flow in live) for index in range(WORKERS)]
        assert all(shares)

        before = worker_pids(gateway)
        assert len(before) == WORKERS
        os.kill(before[0], signal.SIGKILL)
        wait_counter(gateway, "workers_lost")
        survivors = [sock for sock in flows if echoes(sock)]
        assert len(survivors) in shares
        wait_until(lambda: len(worker_pids(gateway)) == WORKERS, "a new worker", 20)

        counters = gateway.counters()
        assert counters["workers_lost"] == 1
        assert counters["flows_lost"] == FLOWS - len(survivors)
        assert counters["flows_accepted"] == FLOWS
        for _ in range(FLOWS):
            assert peer_seen(desk, target(lab, 4)) in upstream(lab, "home")


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
