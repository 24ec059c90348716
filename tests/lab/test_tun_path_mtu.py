"""A TUN that takes more than a link before a host does: what its router says of that is heard."""

from __future__ import annotations

from typing import Any

import pytest
from attic import add_attic
from test_tun import download
from traffic import Family, dial, running, target

from gateway.lab import http_server, serve
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine

SIZE = 1_000_000


@pytest.fixture(scope="module")
def attic(module_lab: Lab) -> Machine:
    """It says that it takes as much as others."""
    return add_attic(module_lab)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_connection(module_lab: Lab, attic: Machine, family: Family, workers: int) -> None:
    """The kernel's stack knows it by other ends, at whichever queue the error comes in."""
    config: dict[str, Any] = module_lab.config({"to": "home"})
    config["inbound"] = {"tcp": "tun", "udp": "off", "workers": workers}
    with (
        running(module_lab, config) as gateway,
        dial(attic, target(module_lab, family), serve.HTTP_PORT) as sock,
    ):
        assert download(sock, SIZE) == http_server.digest(SIZE)
        assert gateway.counters()["tun_tcp_told"] > 0
