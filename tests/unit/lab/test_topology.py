"""The topology file: consistent, and the same for Python and for shells."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from gateway.lab.topology import FILE, Topology

TOPOLOGY = Topology.load()


def test_every_network_joins_two_machines_with_addresses_inside_it() -> None:
    for name, prefixes in TOPOLOGY.networks.items():
        for machine, link in TOPOLOGY.cable(name):
            assert tuple(a.network for a in link.addresses) == prefixes
            assert machine.link(name) is link


def test_every_route_leads_to_a_neighbour() -> None:
    for machine in TOPOLOGY.machines.values():
        neighbours = {
            address.ip
            for link in machine.links
            for _, end in TOPOLOGY.cable(link.network)
            for address in end.addresses
        }
        assert {route.via for route in machine.routes} <= neighbours


def test_no_address_is_used_twice() -> None:
    links = [a.ip for m in TOPOLOGY.machines.values() for n in m.links for a in n.addresses]
    addresses = [*links, *map(ip_address, TOPOLOGY.internet_addresses)]
    assert len(set(addresses)) == len(addresses)


def test_a_shell_reads_every_value() -> None:
    program = (
        'eval "$1"; echo "$WEB_IPV6" "$ROUTER_KIDS" "$HOME_PORT" $WORK_PASSWORD $KIDS_PREFIXES'
    )
    done = subprocess.run(
        ["sh", "-eu", "-c", program, "sh", TOPOLOGY.shell()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "2001:db8:51::10 192.168.20.1 1080 secret 192.168.20.0/24 fd00:20::/64\n"


def test_the_helper_prints_the_same() -> None:
    command = [sys.executable, "-m", "gateway.lab.topology", "--shell"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == (
        TOPOLOGY.shell()
    )


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ('via: [192.168.10.1, "fd00:10::1"]', "via: [192.168.10.1]", "argument 2 is shorter"),
        ('via: [192.168.10.1, "fd00:10::1"]', 'via: ["fd00:10::1", 192.168.10.1]', "two address"),
        ('web: [198.51.100.10, "2001:db8:51::10"]', "web: [198.51.100.10]", "one IPv4 and one"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, right: str, wrong: str, message: str) -> None:
    text = FILE.read_text()
    assert right in text
    path = tmp_path / "topology.yaml"
    path.write_text(text.replace(right, wrong))
    with pytest.raises(ValueError, match=message):
        Topology.load(path)


def test_a_network_with_one_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "topology.yaml"
    path.write_text(
        FILE.read_text().replace(
            "{network: kids, addresses: [192.168.20.10", "{network: lost, addresses: [192.168.20.10"
        )
    )
    with pytest.raises(ValueError, match="kids joins 1 machines"):
        Topology.load(path).cable("kids")
