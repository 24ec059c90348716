"""A TUN that takes more than a link before a host does: what its router says of that is heard."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from attic import add_attic
from datagrams import ECHO, LONG, answering, echo, long_echoed, talking
from test_tun import download
from traffic import Family, dial, running, target

from gateway.lab import http_server, serve
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.process import wait_until

SIZE = 1_000_000


@pytest.fixture(scope="module")
def attic(module_lab: Lab) -> Machine:
    """It says that it takes as much as others."""
    return add_attic(module_lab)


@pytest.fixture(scope="module", params=[1, 2])
def gateway(
    request: pytest.FixtureRequest, module_lab: Lab, attic: Machine
) -> Iterator[GatewayProcess]:
    """Of several workers, the one that knows a flow is to be told of it."""
    lab = module_lab
    wan = {"wan": {"type": "direct", "interface": "wan0"}}
    rules = ({"protocol": "tcp", "to": "home"}, {"to": "wan"})
    config: dict[str, Any] = lab.config(*rules, outbounds={"home": lab.socks("home"), **wan})
    config["inbound"] = {"tcp": "tun", "udp": "tun", "icmp": "tun", "workers": request.param}
    with answering(lab, {ECHO: echo}), running(lab, config) as gateway:
        yield gateway


def test_a_connection(
    module_lab: Lab, attic: Machine, gateway: GatewayProcess, family: Family
) -> None:
    """The kernel's stack knows it by other ends."""
    before = gateway.counters().get("tun_tcp_told", 0)
    with dial(attic, target(module_lab, family), serve.HTTP_PORT) as sock:
        assert download(sock, SIZE) == http_server.digest(SIZE)
    assert gateway.counters()["tun_tcp_told"] > before


def test_datagrams(
    module_lab: Lab, attic: Machine, gateway: GatewayProcess, family: Family
) -> None:
    """Of several sockets; IPv4's are cut by the router itself."""
    host = target(module_lab, family)
    for _ in range(4):
        with talking(attic, host) as sock:
            wait_until(partial(long_echoed, sock), "an answer as long as the question")
    if family == 6:
        assert gateway.counters()["tun_path_told"] == 1


def test_pings(module_lab: Lab, attic: Machine, gateway: GatewayProcess, family: Family) -> None:
    """The first may be what it is known by; no other is lost."""
    # One at a time: for the last of several ping(8) does not wait as long as it is told to.
    command = ["ping", "-n", "-c", "1", "-s", str(len(LONG)), target(module_lab, family), "-W"]

    def one_is_answered() -> bool:
        return attic.run([*command, "1"], check=False).returncode == 0

    wait_until(one_is_answered, "an answer as long as the question")
    for _ in range(4):
        attic.run([*command, "20"])
