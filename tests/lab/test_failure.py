"""The gateway dies, freezes, or cannot start: what the kernel does then, and what is left."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from traffic import (
    Witness,
    address,
    attempt,
    command,
    listen,
    peer_seen,
    running,
    targets,
    upstream,
)

from gateway.lab.gateway_process import GatewayProcess
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
            seen = [peer_seen(machine, host, timeout_s=0.5) for host in targets(lab, "web")]
        except LabError:
            return False
        return seen == list(machine.spec.links[0].pair)

    wait_until(direct, "the kernel to route on by itself")


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
        wait_until(lambda: peer_seen(desk, host) in upstream(lab, "home"), "the gateway to be back")


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
