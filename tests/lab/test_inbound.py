"""Listeners: who may reach them, and what happens when descriptors run out."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from traffic import (
    Family,
    address,
    attempt,
    new_socket,
    peer_seen,
    running,
    target,
    upstream,
    wait_counter,
)

from gateway.lab import serve
from gateway.lab.gateway_process import GatewayProcess, gateway_command
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.process import wait_until
from gateway.marks import DEFAULT_TCP_PORT, PRIORITY_DIVERT


@pytest.fixture(scope="module")
def gateway(module_lab: Lab, backend: str, mode: str, workers: int) -> Iterator[GatewayProcess]:
    with running(
        module_lab, module_lab.config({"to": "home"}), backend=backend, mode=mode, workers=workers
    ) as it:
        yield it


def dialled(lab: Lab, backend: str) -> int:
    """How many packets the kernel counted that were for the listener's own port."""
    if backend == "nftables":
        text = lab.router.run(["nft", "-j", "list", "chain", "inet", "gateway", "lan"]).stdout
        rules = [item["rule"] for item in json.loads(text)["nftables"] if "rule" in item]
        counts = [
            part["counter"]["packets"]
            for rule in rules
            if "to-listener" in rule["comment"]
            for part in rule["expr"]
            if "counter" in part
        ]
    else:
        lines = [
            line
            for tool in ("iptables-legacy-save", "ip6tables-legacy-save")
            for line in lab.router.run([tool, "-c", "-t", "mangle"]).stdout.splitlines()
            if "to-listener" in line
        ]
        counts = [int(line[1:].split(":")[0]) for line in lines]
    assert counts
    return sum(counts)


@pytest.mark.parametrize("network", ["office", "wan"])
def test_nobody_in_the_lan_can_dial_the_listener(
    module_lab: Lab, gateway: GatewayProcess, backend: str, mode: str, family: Family, network: str
) -> None:
    """At none of the router's addresses; and each attempt is counted."""
    host = address(module_lab.router, family, network)
    before = gateway.counters(), dialled(module_lab, backend)
    assert turned_away(module_lab.client("desk"), host)
    assert dialled(module_lab, backend) > before[1]
    if mode == "redirect":
        wait_counter(gateway, "refused_not-diverted", refusals(before[0]) + 1)
    assert accepted(gateway.counters()) == accepted(before[0])


def test_nor_can_the_gateways_own_machine(
    module_lab: Lab, gateway: GatewayProcess, mode: str, family: Family
) -> None:
    """Neither by loopback, where TPROXY's listener is, nor by an outward address."""
    before = gateway.counters()
    for host in ("127.0.0.1" if family == 4 else "::1", address(module_lab.router, family)):
        assert turned_away(module_lab.router, host)
    # TPROXY's listener is on loopback alone: of the other attempt only the kernel knows.
    counted = 2 if mode == "redirect" else 1
    wait_counter(gateway, "refused_not-diverted", refusals(before) + counted)
    assert accepted(gateway.counters()) == accepted(before)


def turned_away(machine: Machine, host: str) -> bool:
    """Whether a connection to the listener's port ends before a byte comes."""
    _, end = attempt(machine, host, DEFAULT_TCP_PORT)
    return isinstance(end, ConnectionError)


def accepted(counters: dict[str, int]) -> int:
    return counters.get("flows_accepted", 0)


def refusals(counters: dict[str, int]) -> int:
    return counters.get("refused_not-diverted", 0)


def test_running_out_of_descriptors_does_not_end_accepting(
    lab: Lab, backend: str, mode: str
) -> None:
    """What cannot be carried is reset and counted; once there is room, flows pass again."""
    desk, host = lab.client("desk"), target(lab, 4)
    config = lab.config({"to": "home"})
    config["inbound"]["workers"] = 1  # the limit is set on the one process
    with running(lab, config, backend=backend, mode=mode) as gateway:
        lab.router.run(["prlimit", f"--pid={gateway.pid}", "--nofile=64:64"])
        with ExitStack() as flood:
            clients = [flood.enter_context(new_socket(desk, host)) for _ in range(100)]
            for client in clients:
                client.setblocking(False)
                client.connect_ex((host, serve.ECHO_PORT))
            # The control socket has no descriptor either, and the log says nothing of whom the
            # listener itself refuses.
            wait_until(lambda: any(map(is_reset, clients)), "the flood to be too much")
        wait_until(lambda: not gateway.flows(0), "the flood to end")
        failed = ("refused_no-resources", "closed_no-resources")
        assert sum(gateway.counters().get(name, 0) for name in failed) > 0
        assert peer_seen(desk, host) in upstream(lab, "home")


def is_reset(client: socket.socket) -> bool:
    """Whether a connection that does not block has been reset since it was last looked at."""
    try:
        client.recv(1)
    except ConnectionResetError:
        return True
    except BlockingIOError:
        pass
    return False


def test_a_flood_leaves_the_gateway_descriptors_of_its_own(lab: Lab, backend: str) -> None:
    """It answers, stays alive for the kernel, and repairs what others remove from it."""
    desk, host = lab.client("desk"), target(lab, 4)
    config = lab.config({"to": "home"})
    config["inbound"] |= {"workers": 1, "on_failure": "open"}
    # Root would raise the limit.
    limited = ("prlimit", "--nofile=192:192", "setpriv", "--bounding-set=-sys_resource")
    program = (*limited, *gateway_command("run"))
    with running(lab, config, backend=backend, program=program) as gateway, ExitStack() as flood:
        for _ in range(250):
            client = flood.enter_context(new_socket(desk, host))
            client.setblocking(False)
            client.connect_ex((host, serve.ECHO_PORT))
        wait_until(
            lambda: gateway.counters().get("refused_no-resources", 0) > 0, "the flood to arrive"
        )
        lab.router.run(["ip", "rule", "del", "priority", str(PRIORITY_DIVERT)])
        wait_until(lambda: any("repaired" in line for line in gateway.log), "the repair")
        assert len(gateway.flows(0)) > 20, "the flood is still there"
        assert not any("descriptor" in line for line in gateway.log), gateway.log
