"""Routing loops: each is shown to happen without what prevents it, and then not to, with it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from traffic import (
    CURL_RESET,
    Family,
    address,
    curl,
    dial,
    flow_of,
    peer_seen,
    run_gateway,
    running,
    target,
    targets,
    upstream,
    url,
)

from gateway.errors import GatewayError
from gateway.lab import upstreams
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.process import LabError, wait_until
from gateway.lab.topology import Pair, Upstream
from gateway.marks import Marks

NAIVE = (sys.executable, str(Path(__file__).with_name("naive_gateway.py")))
#: So many accepts for one connection are a storm.
STORM = 50
#: Ends a storm before it fills the machine.
DESCRIPTORS = 300


def diverting_itself(lab: Lab) -> dict[str, Any]:
    """Everything to ``home``, this machine's own traffic as well."""
    config = lab.config({"to": "home"})
    config["lan"]["this_machine"] = True
    return config


def accepted(gateway: GatewayProcess) -> int:
    """Flows so far; 0 when the gateway is too busy to say."""
    with suppress(GatewayError):
        return gateway.counters().get("flows_accepted", 0)
    return 0


def limit_descriptors(lab: Lab, gateway: GatewayProcess) -> None:
    lab.router.run(["prlimit", f"--pid={gateway.pid}", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}"])


def end_storm(lab: Lab, gateway: GatewayProcess) -> None:
    """Kill it, and remove what it left."""
    gateway.kill()
    run_gateway(lab, "down", "--run-dir", str(gateway.run_dir))


def test_the_bypass_mark_prevents_an_accept_storm(
    module_lab: Lab, backend: str, mode: str, family: Family
) -> None:
    """Unmarked, one connection becomes as many as there are descriptors; marked, it is one."""
    lab, host = module_lab, target(module_lab, family)
    config = diverting_itself(lab)
    with running(lab, config, backend=backend, mode=mode, program=NAIVE) as naive:
        limit_descriptors(lab, naive)
        with dial(lab.router, host, 80):
            wait_until(lambda: accepted(naive) > STORM, "the storm")
        end_storm(lab, naive)
    with running(lab, config, backend=backend, mode=mode) as gateway:
        assert peer_seen(lab.router, host) in upstream(lab, "home")
        assert peer_seen(lab.client("desk"), host) in upstream(lab, "home")
        assert accepted(gateway) == 2


def test_the_detector_ends_a_loop_by_itself(
    module_lab: Lab, backend: str, mode: str, family: Family
) -> None:
    """Unmarked but detected: the gateway's own connection is closed, counted, and named."""
    lab, host = module_lab, target(module_lab, family)
    program = (*NAIVE, "--detect-loops")
    with running(
        lab, diverting_itself(lab), backend=backend, mode=mode, program=program
    ) as gateway:
        done = curl(lab.router, url(host, "/whoami"), "-w", "%{stderr}%{local_port}")
        assert done.returncode == CURL_RESET
        wait_until(lambda: len(gateway.flows(0)) == 0, "both flows to close")
        counters = gateway.counters()
        assert (counters["flows_accepted"], counters["closed_loop"]) == (2, 1)
        reasons = {flow["close_reason"]: flow["detail"] for flow in gateway.flows()}
        assert "diverted" in reasons["loop"]


# --- the `device` strategy --------------------------------------------------------------------

LOOPBACK_PORT = 1081


@pytest.fixture
def local_socks(module_lab: Lab) -> Iterator[None]:
    """A SOCKS server on the gateway's own machine."""
    command = ["microsocks", "-i", "127.0.0.1", "-p", str(LOOPBACK_PORT)]
    server = module_lab.router.start_listening(
        "microsocks", command, ("127.0.0.1", LOOPBACK_PORT)
    )
    yield
    server.stop()


def test_device_outbounds_are_used_only_where_they_can_work(
    module_lab: Lab, backend: str, local_socks: None
) -> None:
    """A bound socket cannot reach this machine, nor the world by a link without a route."""
    lab, desk = module_lab, module_lab.client("desk")
    bound = socket.SO_BINDTODEVICE
    with dial(lab.router, "127.0.0.1", LOOPBACK_PORT), pytest.raises(OSError, match="timed out"):
        dial(lab.router, "127.0.0.1", LOOPBACK_PORT, options={bound: b"wan0\0"}, timeout_s=1)

    here = {"type": "socks5", "server": "127.0.0.1", "port": LOOPBACK_PORT, "interface": "wan0"}
    ways = {
        "bound": {**lab.socks("home"), "interface": "wan0"},
        "auto": here,
        "forced": {**here, "route": "device"},
        "routeless": {**lab.socks("home"), "interface": "office0"},
    }
    ports = {name: 8001 + number for number, name in enumerate(ways)}
    rules = [{"port": ports[name], "to": name} for name in ways]
    with running(lab, lab.config(*rules, {"to": "direct"}, outbounds=ways), backend=backend) as it:
        found = {outbound["name"]: outbound for outbound in it.control.get("/health")["outbounds"]}
        assert {name: found[name]["ok"] for name in ways} == {
            "bound": True,
            "auto": True,
            "forced": False,
            "routeless": False,
        }
        assert "127.0.0.1" in found["forced"]["reason"]
        assert "no route" in found["routeless"]["reason"]
        assert "office0" in found["routeless"]["reason"]
        for name in ways:
            redirect = ["--connect-to", f"::{target(lab, 4)}:{ports[name]}"]
            del redirect
