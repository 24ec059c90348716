"""Real programs over UDP through the TUN: DNS, STUN, iperf3 both ways, HTTP/3, many flows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from test_udp_programs import (
    servers,
    test_a_thousand_flows_at_a_time,
    test_dig,
    test_http3,
    test_iperf3,
    test_ntp_and_stun,
    test_one_socket_hears_everybody,
)
from traffic import running

from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab

__all__ = [
    "servers",
    "test_a_thousand_flows_at_a_time",
    "test_dig",
    "test_http3",
    "test_iperf3",
    "test_ntp_and_stun",
    "test_one_socket_hears_everybody",
]


@pytest.fixture(scope="module")
def socks_server() -> str:
    """One server is enough: the way there is another, not the way onward."""
    return "sing-box"


@pytest.fixture(scope="module")
def gateway(module_lab: Lab, socks_server: str) -> Iterator[GatewayProcess]:
    """All to a real server."""
    lab = module_lab
    lab.start_upstream(socks_server)
    config = lab.config({"to": "spare"}, outbounds={"spare": lab.socks("spare")})
    config["inbound"] = {"udp": "tun"}
    with running(lab, config) as gateway:
        yield gateway
        assert "udp_replies_raw" not in gateway.counters()
