"""A SOCKS server that fails: the client gets a reset, and the record says which failure it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from traffic import curl, listen, reset_flow, running, target, url

from gateway.lab import serve
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab

#: Inside the WAN's network, but nobody has it. The router knows a hardware address for it: were it
#: asked for by ARP, the kernel would say "unreachable" whenever an earlier question has failed.
NOBODY = "203.0.113.99"
#: Outside all that the lab's internet has a route to.
NOWHERE = "192.0.2.99"
MUTE_PORT = 4242
WRONG = "correct-horse-battery-staple"

#: What is wrong with the outbound, as changes to ``home``, and the reason in the record.
TROUBLES = {
    "target refuses": ({}, "upstream-refused"),
    "target unreachable": ({}, "upstream-unreachable"),
    "wrong password": (
        {"server": "203.0.113.6", "username": "me", "password": WRONG},
        "upstream-denied",
    ),
    "no password": ({"server": "203.0.113.6"}, "upstream-denied"),
    "server down": ({"port": 9}, "upstream-refused"),
    "server gone": ({"server": NOBODY}, "connect-timeout"),
    "server mute": ({"port": MUTE_PORT}, "connect-timeout"),
    "server speaks another protocol": ({"port": serve.BANNER_PORT}, "upstream-protocol"),
}
#: Those that nothing but the time-out ends; all others have the time that they need.
SILENT = [trouble for trouble, (_, reason) in TROUBLES.items() if reason == "connect-timeout"]
#: A rule for each sends its port there; nobody serves any of them.
PORTS = {trouble: 8201 + number for number, trouble in enumerate(TROUBLES)}


@pytest.fixture(scope="module")
def config(module_lab: Lab) -> dict[str, Any]:
    lab = module_lab
    names = {trouble: trouble.replace(" ", "-") for trouble in TROUBLES}
    outbounds = {
        names[trouble]: lab.socks("home") | changes for trouble, (changes, _) in TROUBLES.items()
    }
    rules = [{"port": PORTS[trouble], "to": names[trouble]} for trouble in TROUBLES]
    return lab.config(*rules, {"to": "direct"}, outbounds=outbounds)


@pytest.fixture(scope="module")
def gateway(
    module_lab: Lab, config: dict[str, Any], backend: str, mode: str, workers: int
) -> Iterator[GatewayProcess]:
    lab = module_lab
    neighbour = ["lladdr", "02:00:00:00:00:99", "dev", "wan0", "nud", "permanent"]
    lab.router.run(["ip", "neighbour", "replace", NOBODY, *neighbour])
    mute = listen(lab.internet, lab.topology.upstreams["home"].addresses.ipv4, MUTE_PORT)
    with mute, running(lab, config, backend=backend, mode=mode, workers=workers) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def hasty(gateway: GatewayProcess) -> GatewayProcess:
    """The same, with a time-out that is worth waiting for."""
    gateway.reload(f"{gateway.config_path.read_text()}timeouts: {{connect: 0.5}}\n")
    return gateway


@pytest.mark.parametrize("trouble", [trouble for trouble in TROUBLES if trouble not in SILENT])
def test_a_failing_upstream_is_named(
    module_lab: Lab, gateway: GatewayProcess, trouble: str
) -> None:
    host = NOWHERE if trouble == "target unreachable" else target(module_lab, 4)
    flow = reset_flow(gateway, module_lab.client("desk"), host, PORTS[trouble])
    assert flow["close_reason"] == TROUBLES[trouble][1]
    assert flow["detail"]


@pytest.mark.parametrize("trouble", SILENT)
def test_a_silent_upstream_is_named(module_lab: Lab, hasty: GatewayProcess, trouble: str) -> None:
    flow = reset_flow(hasty, module_lab.client("desk"), target(module_lab, 4), PORTS[trouble])
    assert flow["close_reason"] == TROUBLES[trouble][1]
    assert flow["detail"]


def test_no_password_shows_anywhere(module_lab: Lab, gateway: GatewayProcess) -> None:
    """Neither in the log nor in what the control socket answers."""
    curl(module_lab.client("desk"), url(target(module_lab, 4), "/", PORTS["wrong password"]))
    said = "\n".join(gateway.log) + "".join(
        str(gateway.control.get(path)) for path in ("/health", "/flows?recent=100", "/plan")
    )
    assert "wrong-password" in said
    assert WRONG not in said
