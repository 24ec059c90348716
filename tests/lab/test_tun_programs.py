"""Real programs over UDP through the TUN: DNS, NTP, STUN, iperf3 both ways, a thousand flows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from test_udp_programs import (
    servers,
    test_a_thousand_flows_at_a_time,
    test_dig,
    test_iperf3,
    test_ntp_and_stun,
)
from traffic import running

from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab

__all__ = [
    "servers",
    "test_a_thousand_flows_at_a_time",
    "test_dig",
    "test_iperf3",
    "test_ntp_and_stun",
]


@pytest.fixture(scope="module")
def gateway(module_lab: Lab) -> Iterator[GatewayProcess]:
    """All to a real server."""
    lab = module_lab
    lab.start_upstream("sing-box")
    config = lab.config({"to": "spare"}, outbounds={"spare": lab.socks("spare")})
    config["inbound"] = {"udp": "tun"}
    with running(lab, config) as gateway:
        yield gateway
        assert "udp_replies_raw" not in gateway.counters()
