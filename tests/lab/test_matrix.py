"""Bulk through real SOCKS servers: every backend, mode, family, origin and server."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from traffic import (
    Family,
    address,
    curl,
    flow_of,
    iperf3,
    peer_seen,
    running,
    target,
    targets,
    upstream,
    url,
)

from gateway.flow import Endpoint
from gateway.lab import http_server, upstreams
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab

SIZE = 100_000_000
IPERF_BYTES = 50_000_000
SOCKS_PORT = 2080

#: Each server at an address of its own, and the target whose rule leads to it.
SERVERS = {
    "microsocks": ("work", "web"),
    "danted": ("home", "mirror"),
    "sing-box": ("spare", "blocked"),
}


@pytest.fixture(scope="module")
def servers_lab(module_lab: Lab) -> Lab:
    """The lab with the three SOCKS servers on the internet."""
    for kind, (name, _) in SERVERS.items():
        directory = module_lab.directory / kind
        directory.mkdir()
        server = replace(module_lab.topology.upstreams[name], port=SOCKS_PORT)
        if kind == "danted":
            server = replace(server, username=None, password=None)
        upstreams.STARTERS[kind](module_lab.internet, server, directory)
    return module_lab


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is uploaded."""
    path = tmp_path_factory.mktemp("matrix") / "payload"
    with path.open("wb") as file:
        file.writelines(http_server.pieces(SIZE))
    return path


@pytest.fixture(scope="module")
def gateway(servers_lab: Lab, backend: str, mode: str, workers: int) -> Iterator[GatewayProcess]:
    """One gateway for all cells of a backend and mode: rules tell the servers apart."""
    lab = servers_lab
    config = lab.config(
        *({"destination": targets(lab, host), "to": kind} for kind, (_, host) in SERVERS.items()),
        {"to": "direct"},
        outbounds={
            kind: {**lab.socks(name), "port": SOCKS_PORT} for kind, (name, _) in SERVERS.items()
        },
    )
    config["lan"]["this_machine"] = True
    with running(lab, config, backend=backend, mode=mode, workers=workers) as gateway:
        yield gateway


@pytest.fixture(params=["desk", "router"])
def origin(request: pytest.FixtureRequest) -> str:
    """A LAN host, and the gateway's own machine."""
    return str(request.param)


@pytest.mark.parametrize("kind", SERVERS)
def test_bulk_both_ways(
    servers_lab: Lab,
    gateway: GatewayProcess,
    payload: Path,
    origin: str,
    family: Family,
    kind: str,
) -> None:
    """100 MB down and up arrive whole, by the SOCKS server of the rule, and are recorded."""
    lab = servers_lab
    machine = lab.machines[origin]
    via, name = SERVERS[kind]
    host = target(lab, family, name)

    seen = peer_seen(machine, host)
    if (kind, family) == ("microsocks", 6):
        # It is bound to its IPv4 address; for IPv6 the kernel takes the target's own.
        assert seen == host
    else:
        assert seen in upstream(lab, via)

    report = ["-w", "%{stderr}%{local_port}"]
    path = lab.directory / "download"
    down = curl(machine, url(host, f"/bytes/{SIZE}"), *report, "-o", str(path), timeout_s=120)
    assert down.returncode == 0, down.stderr
    assert filecmp.cmp(path, payload, shallow=False)

    up = curl(machine, url(host, "/upload"), *report, "-T", str(payload), timeout_s=120)
    assert up.returncode == 0, up.stderr
    assert json.loads(up.stdout) == {"sha256": http_server.digest(SIZE), "size": SIZE}

    for done, moved in ((down, "bytes_down"), (up, "bytes_up")):
        flow = flow_of(gateway, int(done.stderr))
        assert flow[moved] >= SIZE
        assert flow["client"] == str(Endpoint(address(machine, family), int(done.stderr)))
        assert flow["rule"].startswith(f"rules[{list(SERVERS).index(kind)}]")
        assert (flow["outbound"], flow["close_reason"]) == (kind, "done")


@pytest.mark.parametrize("kind", SERVERS)
def test_iperf3_both_ways(
    servers_lab: Lab, gateway: GatewayProcess, origin: str, family: Family, kind: str
) -> None:
    """iperf3's control and data connections pass, in both directions."""
    lab = servers_lab
    host = target(lab, family, SERVERS[kind][1])
    for way in ([], ["-R"]):
        sums = iperf3(lab, lab.machines[origin], host, "-n", str(IPERF_BYTES), *way)
        # The receiver stops counting when the sender is done, with bytes still on their way.
        assert sums["sum_sent"]["bytes"] >= IPERF_BYTES
        assert sums["sum_received"]["bytes"] > 0
