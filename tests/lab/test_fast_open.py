"""TCP Fast Open towards a SOCKS server: the handshake goes with the SYN, and never gets lost."""

from __future__ import annotations

import json

import pytest
from traffic import Family, peer_seen, running, target, upstream

from gateway.lab.lab import Lab
from gateway.lab.machine import Machine

#: net.ipv4.tcp_fastopen, which IPv6 obeys too: to connect (1), to listen (2), and this for every
#: listener, not only those that ask for it (0x400).
ON, LISTENERS = 3, 0x400
SYN_DATA_SENT = "TcpExtTCPFastOpenActive"
SYN_DATA_TAKEN = "TcpExtTCPFastOpenPassive"


@pytest.fixture
def lab(bare_lab: Lab) -> Lab:
    """Its servers know it: a listener takes note when it begins to listen."""
    bare_lab.internet.sysctl("net.ipv4.tcp_fastopen", str(ON | LISTENERS))
    bare_lab.start_servers()
    return bare_lab


def count(machine: Machine, name: str) -> int:
    shown = machine.run(["nstat", "-asz", "--json", name]).stdout
    found: int = json.loads(shown)["kernel"][name]
    return found


def config(lab: Lab, family: Family, **settings: object) -> dict[str, object]:
    server = lab.topology.upstreams["home"].addresses.of(family)
    # Without the pool each flow is one connection.
    home = {**lab.socks("home"), "server": server, "fast_open": True, "pool": "off", **settings}
    return lab.config({"to": "home"}, outbounds={"home": home})


@pytest.mark.parametrize("handshake", ["strict", "pipelined"])
def test_from_the_second_flow_on_the_syn_speaks(lab: Lab, family: Family, handshake: str) -> None:
    """The first brings the cookie. A server that knows it no more gets the data again."""

    def flow() -> None:
        assert peer_seen(lab.client("desk"), target(lab, family)) in upstream(lab, "home")

    with running(lab, config(lab, family, handshake=handshake)):
        flow()
        assert count(lab.router, SYN_DATA_SENT) == 0
        for number in (1, 2):
            flow()
            assert count(lab.router, SYN_DATA_SENT) == number
            assert count(lab.internet, SYN_DATA_TAKEN) == number
        lab.internet.sysctl("net.ipv4.tcp_fastopen", "0")
        for _ in range(2):
            flow()
        assert count(lab.internet, SYN_DATA_TAKEN) == 2


@pytest.mark.parametrize("wanted", [True, False])
def test_neither_without_the_option_nor_against_the_kernel(lab: Lab, wanted: bool) -> None:
    if wanted:
        lab.router.sysctl("net.ipv4.tcp_fastopen", "2")
    with running(lab, config(lab, 4, fast_open=wanted)):
        for _ in range(2):
            assert peer_seen(lab.client("desk"), target(lab, 4)) in upstream(lab, "home")
        assert count(lab.router, SYN_DATA_SENT) == 0
