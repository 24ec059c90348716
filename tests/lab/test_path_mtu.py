"""Whoever takes less than others is sent less: a host of the LAN behind a link of MTU 1280."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from attic import add_attic
from datagrams import ECHO, LONG, answering, echo, long_echoed, talking
from test_tun import download
from traffic import FAMILIES, Family, dial, read, running, target

from gateway.lab import http_server, serve
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.process import wait_until

SIZE = 1_000_000


@pytest.fixture(scope="module")
def attic(module_lab: Lab) -> Machine:
    return add_attic(module_lab)


@pytest.fixture(
    scope="module",
    params=[
        ("tproxy", "nftables"),
        ("tproxy", "iptables"),
        ("redirect", "nftables"),
        ("tun", "nftables"),
    ],
    ids="-".join,
)
def ways(request: pytest.FixtureRequest) -> tuple[str, str]:
    """How TCP is taken, and by which firewall."""
    found: tuple[str, str] = request.param
    return found


@pytest.fixture(scope="module")
def gateway(module_lab: Lab, attic: Machine, ways: tuple[str, str]) -> Iterator[GatewayProcess]:
    """UDP by TPROXY beside REDIRECT."""
    lab, (way, backend) = module_lab, ways
    wan = {"wan": {"type": "direct", "interface": "wan0"}}
    config: dict[str, Any] = lab.config({"to": "wan"}, outbounds=wan)
    config["inbound"] = {"tcp": way, "udp": "tun" if way == "tun" else "tproxy"}
    with answering(lab, {ECHO: echo}), running(lab, config, backend=backend) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def _nothing_is_known(module_lab: Lab) -> None:
    """What one flow has learnt of a path, the kernel knows for all."""
    for family in FAMILIES:
        module_lab.router.run(["ip", f"-{family}", "route", "flush", "cache"])


def test_a_connection(
    module_lab: Lab, attic: Machine, gateway: GatewayProcess, family: Family
) -> None:
    """Its host has said that it takes more: by an ICMP error alone can it be known."""
    host = target(module_lab, family)
    with dial(attic, host, serve.HTTP_PORT) as sock:
        assert download(sock, SIZE) == http_server.digest(SIZE)
    data = bytes(range(256)) * 400
    with dial(attic, host, serve.ECHO_PORT) as sock:
        sock.sendall(data)
        assert hashlib.sha256(read(sock, len(data))).digest() == hashlib.sha256(data).digest()


def test_datagrams(
    module_lab: Lab, attic: Machine, gateway: GatewayProcess, family: Family
) -> None:
    """What comes for it is cut, once it is known that it must be."""
    with talking(attic, target(module_lab, family)) as sock:
        wait_until(lambda: long_echoed(sock), "an answer as long as the question")


def test_pings(module_lab: Lab, attic: Machine, gateway: GatewayProcess, family: Family) -> None:
    """Routed past the gateway."""
    host = target(module_lab, family)
    command = ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "20", "-s", str(len(LONG)), host]
    assert " 0 received" not in attic.run(command, check=False).stdout
