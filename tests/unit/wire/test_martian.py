"""What no packet may come from or go to, in both families."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from gateway.wire.martian import martian


def of(source: str, destination: str) -> str | None:
    return martian(ip_address(source).packed, ip_address(destination).packed)


@pytest.mark.parametrize(
    ("inside", "outside"), [("192.168.1.2", "203.0.113.9"), ("fd00::2", "2001:db8::9")]
)
def test_unicast_to_unicast_is_none(inside: str, outside: str) -> None:
    assert of(inside, outside) is None
    assert of(outside, inside) is None


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0", "0.1.2.3", "127.0.0.1", "255.255.255.255", "::", "::1", "fe80::1",
     "::ffff:192.0.2.1"],
)  # fmt: skip
def test_addresses_that_mean_nothing_beyond_a_host_or_link(address: str) -> None:
    well = "2001:db8::1" if ":" in address else "192.0.2.1"
    assert of(address, well) == "martian_source"
    assert of(well, address) == "martian_destination"


@pytest.mark.parametrize(("group", "well"), [("224.0.0.251", "192.0.2.1"), ("ff02::1", "fd00::1")])
def test_groups(group: str, well: str) -> None:
    assert of(group, well) == "martian_source"
    assert of(well, group) == "multicast"
