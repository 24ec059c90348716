"""Ways out: what the server sees of each, and what the client meets where one refuses or fails."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from traffic import (
    Family,
    address,
    attempt,
    curl,
    flow_of,
    peer_seen,
    running,
    serve_http_on,
    target,
    url,
)

from gateway.lab import http_server
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.namespaces import added, ip
from gateway.lab.process import wait_until

SIZE = 10_000_000
#: A second address of the router on the WAN, for `source`.
SECOND = {4: "203.0.113.3", 6: "2001:db8:113::3"}

WAYS: dict[str, dict[str, Any]] = {
    "device": {"type": "direct", "interface": "wan0"},
    "source4": {"type": "direct", "source": SECOND[4]},
    "source6": {"type": "direct", "source": SECOND[6]},
    "preserve": {"type": "direct", "preserve_source": True},
    "reset": {"type": "reject"},
    "icmp": {"type": "reject", "answer": "icmp"},
    "drop": {"type": "reject", "answer": "drop"},
}
#: A rule for each sends its port there.
PORTS = {name: 8001 + number for number, name in enumerate(WAYS)}


@pytest.fixture(scope="module")
def gateway(module_lab: Lab, backend: str, mode: str, workers: int) -> Iterator[GatewayProcess]:
    lab = module_lab
    rules = [{"port": PORTS[name], "to": name} for name in WAYS]
    config = lab.config(*rules, {"to": "direct"}, outbounds=WAYS)
    config["lan"]["this_machine"] = True
    with running(lab, config, backend=backend, mode=mode, workers=workers) as gateway:
        yield gateway


@pytest.fixture(scope="module", autouse=True)
def second_addresses(module_lab: Lab) -> None:
    """Not those that the kernel itself chooses."""
    prefixes = (f"{SECOND[4]}/24", f"{SECOND[6]}/64")
    second = (f"{added(prefix, 'wan0')} preferred_lft 0" for prefix in prefixes)
    ip(second, module_lab.router.namespace)


@pytest.fixture(scope="module", autouse=True)
def many_ports(module_lab: Lab) -> None:
    serve_http_on(module_lab.internet, "8001-8099")


def test_direct_by_device(module_lab: Lab, gateway: GatewayProcess, family: Family) -> None:
    """`interface`: the server sees the router."""
    seen = peer_seen(module_lab.client("desk"), target(module_lab, family), PORTS["device"])
    assert seen == address(module_lab.router, family)


def test_direct_from_a_source_address(
    module_lab: Lab, gateway: GatewayProcess, family: Family
) -> None:
    """`source`: the server sees the router's other address."""
    port = PORTS[f"source{family}"]
    assert peer_seen(module_lab.client("desk"), target(module_lab, family), port) == SECOND[family]


@pytest.mark.parametrize("client", ["desk", "kid"])
def test_direct_with_the_clients_own_address(
    module_lab: Lab, gateway: GatewayProcess, family: Family, client: str
) -> None:
    """`preserve_source`: the server sees the LAN host, though the gateway relays the flow."""
    machine, host = module_lab.client(client), target(module_lab, family)
    assert peer_seen(machine, host, PORTS["preserve"]) == address(machine, family)
    path = module_lab.directory / "download"
    download = url(host, f"/bytes/{SIZE}", PORTS["preserve"])
    done = curl(machine, download, "-w", "%{local_port}", "-o", str(path))
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(path.read_bytes()).hexdigest() == http_server.digest(SIZE)
    flow = flow_of(gateway, int(done.stdout))
    assert (flow["outbound"], flow["close_reason"]) == ("preserve", "done")
    assert flow["bytes_down"] >= SIZE


@pytest.mark.parametrize("origin", ["desk", "router"])
def test_reject_answers_as_it_was_told(
    module_lab: Lab, gateway: GatewayProcess, family: Family, origin: str
) -> None:
    """A reset, an ICMP error or silence, before any handshake: the listener hears nothing."""
    machine, host = module_lab.machines[origin], target(module_lab, family)
    wait_until(lambda: not gateway.flows(0), "the flows of earlier tests to end")
    before = gateway.counters()
    _, reset = attempt(machine, host, PORTS["reset"])
    assert isinstance(reset, ConnectionRefusedError)
    _, icmp = attempt(machine, host, PORTS["icmp"])
    # ICMP type 3 code 13, and ICMPv6 type 1 code 1, as the kernel tells them to programs.
    assert isinstance(icmp, OSError)
    assert icmp.errno == (errno.EHOSTUNREACH if family == 4 else errno.EACCES)
    _, drop = attempt(machine, host, PORTS["drop"], timeout_s=0.5)
    assert isinstance(drop, TimeoutError)
    assert gateway.counters() == before
