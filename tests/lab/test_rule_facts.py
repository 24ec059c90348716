"""What rules ask of a flow beside its addresses, through the real gateway: each has its port."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet
from traffic import (
    Family,
    address,
    flow_of,
    new_socket,
    peer_seen,
    read_all,
    running,
    serve_http_on,
    target,
    targets,
    upstream,
    url,
)

from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.process import wait_until

NOBODY = 65534
EF = 46
MARK = 0x10


def hardware_address(machine: Machine) -> str:
    (link,) = json.loads(machine.run(["ip", "-j", "link", "show", "lan0"]).stdout)
    return str(link["address"])


def places(path: Path, *hosts: str) -> str:
    """A database that has these addresses in UT and in AS 64500."""
    writer = MMDBWriter(6, "Lab", ipv4_compatible=True)
    record = {"country": {"iso_code": "UT"}, "autonomous_system_number": 64500}
    writer.insert_network(IPSet(list(hosts)), record)
    writer.to_db_file(str(path))
    return str(path)


def leases(path: Path, machine: Machine) -> str:
    """The file of a dnsmasq that has given the machine its IPv4 address, and no other."""
    host, mac = address(machine, 4), hardware_address(machine)
    path.write_text(f"{math.ceil(time.time()) + 3600} {mac} {host} Desk-PC *\n")
    return str(path)


def rules(desk: Machine) -> list[dict[str, Any]]:
    """By ``work`` where the condition holds, by ``home`` where it does not."""
    conditions: dict[int, dict[str, Any]] = {
        8101: {"device": "desk"},
        8102: {"device": "dhcp:desk-pc"},
        8103: {"dscp": "ef"},
        8104: {"time": "00:00-24:00", "weekday": "mon-sun"},
        8105: {"not": {"time": "00:00-24:00"}},
        8106: {"country": "UT"},
        8107: {"asn": 64500},
        8108: {"not": {"subnet": "kids"}},
        8109: {"any": [{"device": hardware_address(desk)}, {"dscp": "af41"}]},
        8110: {"uid": NOBODY},
    }
    return [
        *({**asked, "port": port, "to": "work"} for port, asked in conditions.items()),
        {"port": "8111-8112", "goto": "page"},
        {"to": "home"},
    ]


PAGE = [
    {"port": 8111, "subnet": "office", "to": "work"},
    # By name, so that no kernel rule can have decided it.
    {"port": 8112, "not": {"domain": "a.example"}, "mark": MARK, "log": True, "to": "direct"},
]


WAYS = [("nftables", "tproxy"), ("iptables", "tproxy"), ("nftables", "tun")]


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def gateway(module_lab: Lab, request: pytest.FixtureRequest) -> Iterator[GatewayProcess]:
    backend, mode = request.param
    desk = module_lab.client("desk")
    serve_http_on(module_lab.internet, "8101-8199")
    config = module_lab.config(*rules(desk))
    config["lan"] |= {
        "this_machine": True,
        "devices": {"desk": hardware_address(desk)},
        "leases": leases(module_lab.directory / "leases", desk),
    }
    database = places(module_lab.directory / "places.mmdb", *targets(module_lab, "web"))
    config |= {"lists": {"page": PAGE}, "geo": {"country": database, "asn": database}}
    config |= {"log": {"level": "warning"}}
    with running(module_lab, config, backend=backend, mode=mode) as it:
        yield it


def way(lab: Lab, client: str, host: str, port: int) -> str:
    """The outbound whose server the web server saw."""
    seen = peer_seen(lab.client(client), host, port)
    return next(name for name in ("home", "work") if seen in upstream(lab, name))


@pytest.mark.parametrize(
    ("port", "desk", "kid"),
    [
        (8101, "work", "home"),
        (8102, "work", "home"),
        (8103, "home", "home"),
        (8104, "work", "work"),
        (8105, "home", "home"),
        (8106, "work", "work"),
        (8107, "work", "work"),
        (8108, "work", "home"),
        (8109, "work", "home"),
        (8110, "home", "home"),
        (8111, "work", "home"),
        (8199, "home", "home"),
    ],
)
@pytest.mark.usefixtures("gateway")
def test_the_condition_decides(
    module_lab: Lab, family: Family, port: int, desk: str, kid: str
) -> None:
    host = target(module_lab, family)
    assert way(module_lab, "desk", host, port) == desk
    assert way(module_lab, "kid", host, port) == kid


@pytest.mark.usefixtures("gateway")
def test_the_database_knows_the_destination(module_lab: Lab, family: Family) -> None:
    assert way(module_lab, "desk", target(module_lab, family, "mirror"), 8106) == "home"


@pytest.mark.usefixtures("gateway")
def test_the_dscp_of_the_first_packet(module_lab: Lab, family: Family) -> None:
    host = target(module_lab, family)
    with new_socket(module_lab.client("kid"), host) as sock:
        if family == 4:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, EF << 2)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, EF << 2)
        sock.connect((host, 8103))
        sock.sendall(b"GET /whoami HTTP/1.0\r\n\r\n")
        seen = json.loads(read_all(sock).partition(b"\r\n\r\n")[2])["peer"]
    assert seen in upstream(module_lab, "work")


@pytest.mark.usefixtures("gateway")
@pytest.mark.parametrize(("uid", "expected"), [(NOBODY, "work"), (1, "home")])
def test_whose_a_flow_of_this_machine_is(
    module_lab: Lab, family: Family, uid: int, expected: str
) -> None:
    address = url(target(module_lab, family), "/whoami", 8110)
    as_user = ["setpriv", f"--reuid={uid}", "--clear-groups", "curl", "-sSgf", "-m", "20", address]
    seen = json.loads(module_lab.router.run(as_user).stdout)["peer"]
    assert seen in upstream(module_lab, expected)


def test_a_direct_flow_leaves_with_the_owners_mark(
    module_lab: Lab, gateway: GatewayProcess, family: Family
) -> None:
    """Only packets with the mark may go there; the rule's log line stands without others."""
    desk, host = module_lab.client("desk"), target(module_lab, family)
    only_marked = f"""table inet owners {{
        chain out {{
            type filter hook output priority 0
            tcp dport 8112 meta mark & {MARK:#x} != {MARK:#x} reject
        }}
    }}"""
    module_lab.router.run(["nft", "-f", "-"], stdin=only_marked)
    try:
        with new_socket(desk, host) as sock:
            sock.connect((host, 8112))
            sock.sendall(b"GET /whoami HTTP/1.0\r\n\r\n")
            answer = json.loads(read_all(sock).partition(b"\r\n\r\n")[2])
            port = sock.getsockname()[1]
    finally:
        module_lab.router.run(["nft", "delete", "table", "inet", "owners"])
    assert answer["peer"] == address(module_lab.router, family, "wan")
    assert flow_of(gateway, port)["rule"].startswith("lists.page[1] ")
    wait_until(
        lambda: any(f":{port} " in line and " warning flow " in line for line in gateway.log),
        "the line that the rule asks for",
    )
    assert not [line for line in gateway.log if " info flow " in line]
