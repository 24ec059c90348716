"""The folder vagrant/: valid, and its scripts make a working LAN of bare machines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.process import Process

FOLDER = Path(__file__).resolve().parents[2] / "vagrant"
SCRIPTS = ("client.sh", "internet.sh", "router.sh")


@pytest.mark.skipif(shutil.which("vagrant") is None, reason="vagrant is not installed")
def test_vagrantfile_is_valid(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "VAGRANT_HOME": str(tmp_path / "home"),
        "VAGRANT_DOTFILE_PATH": str(tmp_path / "state"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
    }
    command = ["vagrant", "validate", "--ignore-provider"]
    done = subprocess.run(
        command, cwd=FOLDER, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validated successfully" in done.stdout
    for machine in ("internet", "router", "desk", "kid"):
        assert f"==> {machine}:" in done.stdout


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_are_clean() -> None:
    command = ["shellcheck", "--external-sources", *SCRIPTS]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def make_bare(machine: Machine) -> None:
    """As a provider hands a machine over: one IPv4 address on each link, and no routes."""
    for link in machine.spec.links:
        machine.run(["ip", "-6", "address", "flush", "dev", link.name, "scope", "global"])
        machine.run(["ip", "-4", "address", "flush", "dev", link.name])
        machine.run(["ip", "address", "add", str(link.addresses[0]), "dev", link.name])
    machine.run(["ip", "-6", "route", "flush", "proto", "boot"])


def provision(machine: Machine, script: str, directory: Path) -> Process:
    """Start a script that ends in a service."""
    environment = {
        "FOREGROUND": "1",
        "GATEWAY_CONFIG": str(directory / "gateway.yaml"),
        "GATEWAY_RUN_DIR": str(directory),
    }
    return machine.start(script, [str(FOLDER / script), machine.spec.name], environment)


def whoami(machine: Machine, address: str) -> str:
    done = machine.run(["curl", "-sSg", "-m", "10", f"http://{address}/whoami"])
    return str(json.loads(done.stdout)["peer"])


def test_scripts_make_a_lan_whose_clients_go_out_by_different_servers(bare_lab: Lab) -> None:
    lab = bare_lab
    # Set-up needs a network, which the provider gives; the namespaces have none.
    subprocess.run([FOLDER.parent / "gw", "version"], check=True)
    for machine in lab.machines.values():
        make_bare(machine)
    directory = lab.directory
    internet = provision(lab.internet, "internet.sh", directory)
    internet.wait_until(lambda: '{"event": "ready"}' in internet.log, "the servers to listen")
    router = provision(lab.router, "router.sh", directory)
    control = directory / "control.sock"
    router.wait_until(lambda: control.exists() and "ready" in "\n".join(router.log), "the gateway")
    for name in ("kid", "desk"):
        lab.client(name).run([str(FOLDER / "client.sh"), name])

    topology = lab.topology
    for name, upstream in (("kid", "home"), ("desk", "work")):
        web, server = topology.targets["web"], topology.upstreams[upstream].addresses
        assert whoami(lab.client(name), web.ipv4) == server.ipv4
        assert whoami(lab.client(name), f"[{web.ipv6}]") == server.ipv6
    mirror, desk = topology.targets["mirror"], lab.client("desk").spec.links[0].pair
    assert whoami(lab.client("desk"), mirror.ipv4) == desk.ipv4
    assert whoami(lab.client("desk"), f"[{mirror.ipv6}]") == desk.ipv6
