"""The gateway dies, freezes, or cannot start: what the kernel does then, and what is left."""

from __future__ import annotations

import os
import signal
import socket
import struct
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import yaml
from traffic import (
    Witness,
    address,
    attempt,
    command,
    dial,
    listen,
    peer_seen,
    read,
    running,
    targets,
    upstream,
    worker_pids,
)

from gateway.lab import serve
from gateway.lab.gateway_process import ENVIRONMENT, GatewayProcess, gateway_command
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.process import LabError, wait_until
from gateway.marks import DEFAULT_TCP_PORT


def proxying_web(lab: Lab, on_failure: str) -> dict[str, Any]:
    """``web`` by way of ``home``, all else direct."""
    config = lab.config({"destination": targets(lab, "web"), "to": "home"}, {"to": "direct"})
    config["inbound"]["on_failure"] = on_failure
    return config


def assert_proxied(lab: Lab, machine: Machine) -> None:
    for host in targets(lab, "web"):
        assert peer_seen(machine, host) in upstream(lab, "home")


def wait_direct(lab: Lab, machine: Machine) -> None:
    """Until ``web`` is reached directly, in both families."""

    def direct() -> bool:
        try:
            seen = [peer_seen(machine, host, timeout_s=2) for host in targets(lab, "web")]
        except LabError:
            return False
        return seen == list(machine.spec.links[0].pair)

    wait_until(direct, "the kernel to route on by itself", 60)


def kill_alone(lab: Lab, gateway: GatewayProcess) -> None:
    """SIGKILL to the process that its owner knows; its workers must end by themselves."""
    gateway.process.signal(signal.SIGKILL)
    gateway.process.wait()
    wait_until(lambda: not lab.router.listens("", DEFAULT_TCP_PORT), "the workers to end")


def test_killed_and_closed_nothing_leaks(module_lab: Lab, backend: str, mode: str) -> None:
    """What rules proxy gets no packet out; what they send direct goes on working."""
    lab, desk = module_lab, module_lab.client("desk")
    config = proxying_web(lab, "closed")
    with running(lab, config, backend=backend, mode=mode) as gateway:
        assert_proxied(lab, desk)
        kill_alone(lab, gateway)
        seen = Witness(lab.internet, *desk.spec.links[0].pair)
        for host in targets(lab, "web"):
            _, end = attempt(desk, host, 80, timeout_s=0.5)
            assert isinstance(end, OSError)
        assert seen.packets == 0
        for family, host in zip((4, 6), targets(lab, "mirror"), strict=True):
            assert peer_seen(desk, host) == address(desk, family)
        assert seen.packets > 0
        # A second start clears up after the first and works; its stop leaves nothing.
        gateway.restart()
        assert_proxied(lab, desk)


def test_killed_and_open_the_kernel_routes_on(module_lab: Lab, backend: str, mode: str) -> None:
    """Once the dead-man time is over; and `gateway down` then removes what is left."""
    lab, desk = module_lab, module_lab.client("desk")
    with running(lab, proxying_web(lab, "open"), backend=backend, mode=mode) as gateway:
        assert_proxied(lab, desk)
        kill_alone(lab, gateway)
        wait_direct(lab, desk)
        command(lab, "down", "--run-dir", str(gateway.run_dir))


def test_killed_each_subnet_fails_as_it_is_written(
    module_lab: Lab, backend: str, mode: str
) -> None:
    """The desk's goes on, the kid's is refused: held by the kernel alone."""
    lab, desk, kid = module_lab, module_lab.client("desk"), module_lab.client("kid")
    config = proxying_web(lab, "closed")
    config["inbound"]["on_failure_of"] = {"office": "open"}
    with running(lab, config, backend=backend, mode=mode) as gateway:
        assert_proxied(lab, desk)
        assert_proxied(lab, kid)
        kill_alone(lab, gateway)
        seen = Witness(lab.internet, *kid.spec.links[0].pair)
        wait_direct(lab, desk)
        for host in targets(lab, "web"):
            _, end = attempt(kid, host, 80, timeout_s=0.5)
            assert isinstance(end, OSError)
        assert seen.packets == 0
        command(lab, "down", "--run-dir", str(gateway.run_dir))


def test_frozen_and_open_the_kernel_routes_on(module_lab: Lab, backend: str) -> None:
    """A gateway that stands still counts as dead, until it moves again."""
    lab, desk = module_lab, module_lab.client("desk")
    with running(lab, proxying_web(lab, "open"), backend=backend) as gateway:
        assert_proxied(lab, desk)
        gateway.process.signal(signal.SIGSTOP)
        try:
            wait_direct(lab, desk)
        finally:
            gateway.process.signal(signal.SIGCONT)
        (host, _) = targets(lab, "web")

        def is_back() -> bool:
            # A flow that has begun directly is diverted in its middle, and ends.
            with suppress(LabError):
                return peer_seen(desk, host) in upstream(lab, "home")
            return False

        wait_until(is_back, "the gateway to be back")


@pytest.mark.parametrize("wrong", ["port", "config"])
def test_a_failed_start_leaves_nothing(lab: Lab, mode: str, wrong: str) -> None:
    """It ends with one sentence and a cure, not with a traceback."""
    before = lab.router.snapshot()
    config = proxying_web(lab, "closed")
    if wrong == "config":
        config["rules"][0]["to"] = "hom"
    with listen(lab.router, "::1", DEFAULT_TCP_PORT):
        gateway = lab.start_gateway(config, mode=mode, wait=False)
        status = gateway.process.wait()
    said = "\n".join(gateway.log)
    assert status == (2 if wrong == "config" else 1)
    assert ("the port is taken" if wrong == "port" else "did you mean") in said
    assert "Traceback" not in said
    lab.router.assert_unchanged(before)
    assert [path.name for path in gateway.run_dir.iterdir() if path.suffix != ".yaml"] == ["lock"]


def test_an_impatient_interrupt_leaves_nothing(module_lab: Lab, backend: str) -> None:
    """Ctrl-C reaches all of the terminal's group: here again and again, from its first child on."""
    lab = module_lab
    before = lab.router.snapshot()
    config = proxying_web(lab, "closed")
    gateway = lab.start_gateway(config, backend=backend, workers=2, wait=False)
    gateway.process.wait_until(lambda: bool(worker_pids(gateway)), "its first child")

    def ended() -> bool:
        with suppress(ProcessLookupError):
            os.killpg(gateway.pid, signal.SIGINT)
        return not gateway.process.alive

    wait_until(ended, "the gateway to end", 120)
    said = "\n".join(gateway.log)
    assert gateway.process.wait() == 0, said
    assert "stopped: rules, routes and settings are as before" in said
    assert "Traceback" not in said
    lab.router.assert_unchanged(before)


def test_interrupted_while_it_reads_its_file_it_does_not_begin(module_lab: Lab) -> None:
    lab = module_lab
    before = lab.router.snapshot()
    directory = lab.directory / "interrupted"
    directory.mkdir()
    fifo = directory / "gateway.yaml"
    os.mkfifo(fifo)
    run = gateway_command("run", "--config", str(fifo), "--run-dir", str(directory))
    process = lab.router.start("interrupted", run, ENVIRONMENT)
    with fifo.open("w") as file:  # opened once the gateway reads it
        process.signal(signal.SIGINT)
        file.write(yaml.safe_dump(proxying_web(lab, "closed")))
    assert (process.wait(), process.log) == (0, [])
    lab.router.assert_unchanged(before)


#: A program of this machine that redirects, too: its flows are not ours to forget.
FOREIGN_NAT = """
table inet foreign {
    chain output {
        type nat hook output priority -100
        tcp dport 2022 redirect to :2023
    }
}
"""


def tracked(machine: Machine, port: int) -> int:
    """How many flows the kernel translates to this port of the machine."""
    asked = ["conntrack", "-L", "-p", "tcp", "--reply-port-src", str(port), "-f"]
    lists = (machine.run([*asked, family]).stdout for family in ("ipv4", "ipv6"))
    return sum(len(found.splitlines()) for found in lists)


# None of the ports that the kernel chooses from: an earlier connection may rest on such a one.
@pytest.mark.parametrize(
    ("backend", "end", "port"), [("nftables", "stop", 20001), ("iptables", "down", 20002)]
)
def test_redirected_flows_are_forgotten_with_the_rules(
    module_lab: Lab, backend: str, end: str, port: int
) -> None:
    """What a client then sends between the same two ends goes where it is sent to."""
    lab, desk, router = module_lab, module_lab.client("desk"), module_lab.router
    router.run(["nft", "-f", "-"], stdin=FOREIGN_NAT)
    for state in ("fin_wait", "close_wait", "last_ack", "close"):
        # However slow the machine is, they are not to go by themselves.
        router.sysctl(f"net.netfilter.nf_conntrack_tcp_timeout_{state}", "600")
    config = lab.config({"to": "home"})
    config["inbound"]["udp"] = "off"
    before = router.snapshot()
    gateway = lab.start_gateway(config, backend=backend, mode="redirect")
    hosts = targets(lab, "web")
    with (
        listen(router, "127.0.0.1", 2023),
        dial(router, "127.0.0.1", 2022),
        ExitStack() as flows,
    ):
        for host in hosts:
            flow = flows.enter_context(dial(desk, host, serve.ECHO_PORT, source_port=port))
            # So that its port is free once it is closed.
            flow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            flow.sendall(b"awake")
            assert read(flow, 5) == b"awake"
        others = tracked(router, 2023)
        assert (tracked(router, DEFAULT_TCP_PORT), others > 0) == (len(hosts), True)
        if end == "stop":
            gateway.stop()
        else:
            kill_alone(lab, gateway)
            assert tracked(router, DEFAULT_TCP_PORT) == len(hosts)
            done = command(lab, "down", "--run-dir", str(gateway.run_dir))
            assert f"{len(hosts)} redirected flows forgotten" in done.stdout
        assert (tracked(router, DEFAULT_TCP_PORT), tracked(router, 2023)) == (0, others)
    router.assert_unchanged(before)
    forwarding = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
    for key in forwarding:
        router.sysctl(key, "1")
    for host in hosts:
        with dial(desk, host, serve.ECHO_PORT, source_port=port) as flow:
            flow.sendall(b"again")
            assert read(flow, 5) == b"again"
    for key in forwarding:
        router.sysctl(key, "0")
    router.run(["nft", "delete", "table", "inet", "foreign"])
