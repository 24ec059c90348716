"""Reverse-path validation (rp_filter, src_valid_mark) in every setting: diverted flows pass."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from traffic import address, peer_seen, running, serve_http_on, target, targets, upstream

from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab

PRESERVED_PORT = 8001


@pytest.fixture(scope="module")
def gateway(module_lab: Lab, backend: str, mode: str) -> Iterator[GatewayProcess]:
    """``web`` by way of ``home``, one port with the client's address, all else direct."""
    lab = module_lab
    config = lab.config(
        {"port": PRESERVED_PORT, "to": "preserve"},
        {"destination": targets(lab, "web"), "to": "home"},
        {"to": "direct"},
        outbounds={
            "home": lab.socks("home"),
            "preserve": {"type": "direct", "preserve_source": True},
        },
    )
    config["lan"]["this_machine"] = True
    serve_http_on(lab.internet, str(PRESERVED_PORT))
    with running(lab, config, backend=backend, mode=mode) as gateway:
        yield gateway


@pytest.fixture(params=[0, 1, 2], ids=["off", "strict", "loose"])
def rp_filter(request: pytest.FixtureRequest, module_lab: Lab) -> Iterator[None]:
    """The larger of ``all`` and the interface's own counts (ip-sysctl.rst)."""
    yield from setting(module_lab, "net.ipv4.conf.all.rp_filter", request.param)


@pytest.fixture(params=[0, 1], ids=["unmarked", "marked"])
def src_valid_mark(request: pytest.FixtureRequest, module_lab: Lab) -> Iterator[None]:
    """Whether the reverse look-up has the packet's mark; mesh VPNs turn it on."""
    yield from setting(module_lab, "net.ipv4.conf.all.src_valid_mark", request.param)


def setting(lab: Lab, key: str, value: int) -> Iterator[None]:
    before = lab.router.sysctl(key)
    lab.router.sysctl(key, str(value))
    yield
    lab.router.sysctl(key, before)


def test_flows_pass(
    module_lab: Lab, gateway: GatewayProcess, rp_filter: None, src_valid_mark: None
) -> None:
    """Of a LAN host and of the router: proxied, with the client's own address, and direct."""
    lab, desk = module_lab, module_lab.client("desk")
    web, mirror = target(lab, 4), target(lab, 4, "mirror")
    for machine in (desk, lab.router):
        assert peer_seen(machine, web) in upstream(lab, "home")
        assert peer_seen(machine, mirror) == address(machine, 4)
    assert peer_seen(desk, web, PRESERVED_PORT) == address(desk, 4)
