"""What ``gateway init`` writes loads without a problem, on any machine."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.load import load
from gateway.config.schema import Config
from gateway.config.starter import starter
from gateway.plan.host import DefaultRoute, HostFacts, Interface


def host(interfaces: dict[str, str], *routes: tuple[str, str | None]) -> HostFacts:
    return HostFacts(
        interfaces=tuple(
            Interface(name, index, True, tuple(map(ip_interface, addresses.split())))
            for index, (name, addresses) in enumerate(interfaces.items(), start=1)
        ),
        default_routes=tuple(DefaultRoute("ipv4", name, via) for name, via in routes),
    )


def loaded(facts: HostFacts, directory: Path) -> Config:
    path = directory / "starter.yaml"
    path.write_text(starter(facts), encoding="utf-8")
    return load(path).config


def test_a_router(tmp_path: Path) -> None:
    facts = host(
        {
            "lo": "127.0.0.1/8 ::1/128",
            "eth0": "192.168.1.2/24 fd00:1::2/64",
            "eth1": "192.168.10.1/24 fd00:10::1/64 fe80::1/64 2001:db8:5::1/64",
            "br-lan": "10.9.0.1/16",
            "eth2": "203.0.113.9/24",
            "docker0": "172.17.0.1/16",
            "wg0": "10.8.0.1/24",
        },
        ("eth0", "192.168.1.1"),
    )
    config = loaded(facts, tmp_path)
    assert config.lan.interfaces == ("eth1", "br-lan")
    assert {name: [str(n) for n in networks] for name, networks in config.lan.subnets.items()} == {
        "lan1": ["192.168.10.0/24", "fd00:10::/64", "2001:db8:5::/64"],
        "lan2": ["10.9.0.0/16"],
    }
    assert config.lan.this_machine is False
    assert config.rules[-1].to == "direct"
    text = starter(facts)
    assert "leaves by eth0 (via 192.168.1.1)" in text
    assert "docker0, wg0" in text


@pytest.mark.parametrize(
    "facts",
    [
        HostFacts(),
        host({"lo": "127.0.0.1/8"}),
        host({"eth0": "192.168.1.2/24"}, ("eth0", None), ("eth0", None)),
        host({"a": "192.168.1.1/24", "b": "192.168.1.2/24", "c": "192.168.0.1/16"}),
    ],
)
def test_unusual_machines(facts: HostFacts, tmp_path: Path) -> None:
    config = loaded(facts, tmp_path)
    assert config.lan.this_machine is (not config.lan.interfaces)


ADDRESSES = st.builds(
    lambda address, length: ip_interface((address, length)),
    st.ip_addresses(v=4, network="192.168.0.0/16"),
    st.integers(8, 32),
) | st.builds(
    lambda address, length: ip_interface((address, length)),
    st.ip_addresses(v=6, network="fd00::/8"),
    st.integers(8, 128),
)
NAMES = st.from_regex(r"\A[!-.0-9;-~é]{1,15}\Z")


@given(
    st.dictionaries(NAMES, st.lists(ADDRESSES, max_size=3).map(tuple), max_size=4),
    st.lists(NAMES, max_size=2),
)
def test_any_machine(
    tmp_path_factory: pytest.TempPathFactory,
    addresses: dict[str, tuple[IPv4Interface | IPv6Interface, ...]],
    uplinks: list[str],
) -> None:
    facts = HostFacts(
        interfaces=tuple(Interface(name, 1, True, its) for name, its in addresses.items()),
        default_routes=tuple(DefaultRoute("ipv4", name) for name in uplinks),
    )
    loaded(facts, tmp_path_factory.getbasetemp())
