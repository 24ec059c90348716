"""What a person is told of each strategy, and of the kernel's proof of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from traffic import FAMILIES, address, running, target

from gateway.cli.explain import explanation_text
from gateway.lab.gateway_process import ENVIRONMENT, GatewayProcess, gateway_command
from gateway.lab.lab import Lab

USER = 4242
#: An outbound for each strategy, and what its way is called.
WAYS: dict[str, tuple[dict[str, Any], dict[int, str]]] = {
    "mark": ({"type": "socks5", "server": "203.0.113.5"}, {4: "mark"}),
    "device": (
        {"type": "direct", "interface": "wan0"},
        {4: "device wan0", 6: "device wan0"},
    ),
    "source": (
        {"type": "direct", "interface": "wan0", "route": "source"},
        {4: "source 203.0.113.2", 6: "source 2001:db8:113::2"},
    ),
    "host_route": (
        {"type": "socks5", "server": "198.51.100.20", "route": "host_route"},
        {4: "host_route"},
    ),
    "uid": ({"type": "socks5", "server": "127.0.0.1", "uid": USER}, {4: f"uid {USER}"}),
}


@pytest.fixture(scope="module")
def gateway(module_lab: Lab) -> Iterator[GatewayProcess]:
    """Port 8000 goes by the first of ``WAYS``, and so on."""
    rules = [{"port": 8000 + at, "to": name} for at, name in enumerate(WAYS)]
    outbounds = {name: outbound for name, (outbound, _) in WAYS.items()}
    elsewhere = {"type": "direct", "netns": module_lab.client("kid").namespace}
    rules.append({"port": 8100, "to": "netns"})
    config = module_lab.config(
        *rules, {"to": "direct"}, outbounds={**outbounds, "netns": elsewhere}
    )
    config["lan"]["this_machine"] = True
    with running(module_lab, config) as gateway:
        yield gateway


def expected(lab: Lab) -> dict[str, dict[int, str]]:
    """What each outbound's way is called, by address family."""
    inside = f"netns {lab.client('kid').namespace}"
    return {**{name: called for name, (_, called) in WAYS.items()}, "netns": {4: inside, 6: inside}}


def ports() -> dict[str, int]:
    """The destination port that leads to each outbound."""
    return {**{name: 8000 + at for at, name in enumerate(WAYS)}, "netns": 8100}


def test_explain(module_lab: Lab, gateway: GatewayProcess) -> None:
    """By which strategy a flow would leave, with the kernel's answer and the guard's."""
    lab = module_lab
    for name, called in expected(lab).items():
        for family in FAMILIES:
            host = target(lab, family)
            to = f"[{host}]:{ports()[name]}" if family == 6 else f"{host}:{ports()[name]}"
            query = urlencode({"source": address(lab.client("desk"), family), "target": to})
            said = explanation_text(gateway.control.get(f"/explain?{query}"))
            # A SOCKS server is reached by its own family, whatever the flow's.
            way = called.get(family) or called[4]
            assert f" by {way} " in said or f" by {way}:" in said, said
            assert "; loop guard: clear" in said


def test_check_doctor_and_status(module_lab: Lab, gateway: GatewayProcess) -> None:
    """Each outbound, with its strategy and the kernel's answer."""
    lab = module_lab

    def told(*command: str) -> dict[str, Any]:
        done = lab.router.run(
            gateway_command(*command, "--json"), environment=ENVIRONMENT, check=False
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    config = ("--config", str(gateway.config_path))
    checks = told("doctor", *config, "--run-dir", str(gateway.run_dir))["checks"]
    checked = told("check", *config)["outbounds"]
    health = told("status", "--run-dir", str(gateway.run_dir))["outbounds"]
    for name, called in expected(lab).items():
        evidence = [c["evidence"] for c in checks if c["name"] == f"outbound {name}"]
        for at, way in enumerate(called.values()):
            assert f" by {way}: " in evidence[at]
            assert " dev " in evidence[at]
        assert [o["strategy"] for o in checked if o["name"] == name] == list(called.values())
        assert [o["strategy"] for o in health if o["name"] == name] == list(called.values())
        assert all(o["ok"] and o["route"] for o in health if o["name"] == name)
