"""Prefix sets say what ``ipaddress`` says."""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_network,
)
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.policy.prefixes import Network, PrefixSet, address_number

# Few high and few low bits, so that networks nest, touch and overlap often.
V4 = st.builds(
    lambda high, low, length: IPv4Network((high << 30 | low, length), strict=False),
    st.integers(0, 3),
    st.integers(0, 40),
    st.integers(0, 3) | st.integers(27, 32),
)
V6 = st.builds(
    lambda high, low, length: IPv6Network((high << 126 | low, length), strict=False),
    st.integers(0, 3),
    st.integers(0, 40),
    st.integers(0, 3) | st.integers(123, 128),
)
NETWORKS = st.lists(V4 | V6, max_size=12)


def edges(networks: list[Network]) -> list[IPv4Address | IPv6Address]:
    """The addresses at which an answer can change, and their neighbours."""
    ends = {int(n.network_address) + step for n in networks for step in (-1, 0)}
    ends |= {int(n.broadcast_address) + step for n in networks for step in (0, 1)}
    v4 = [IPv4Address(number) for number in ends if 0 <= number < 1 << 32]
    v6 = [IPv6Address(number) for number in ends if 0 <= number < 1 << 128]
    return [*v4, *v6]


def naive(networks: list[Network], address: IPv4Address | IPv6Address) -> bool:
    return any(n.version == address.version and address in n for n in networks)


def collapsed(networks: list[Network]) -> tuple[Network, ...]:
    four = [n for n in networks if isinstance(n, IPv4Network)]
    six = [n for n in networks if isinstance(n, IPv6Network)]
    return (*collapse_addresses(four), *collapse_addresses(six))


@given(NETWORKS)
@example([ip_network("0.0.0.0/0"), ip_network("::/0")])
@example([ip_network("255.255.255.255/32"), ip_network("::/128")])
def test_contains_what_one_of_its_networks_contains(networks: list[Network]) -> None:
    prefixes = PrefixSet.from_networks(networks)
    for address in edges(networks):
        assert prefixes.contains(address_number(str(address))) == naive(networks, address)


@given(NETWORKS)
def test_networks_are_the_shortest_list(networks: list[Network]) -> None:
    prefixes = PrefixSet.from_networks(networks)
    assert prefixes.networks == collapsed(networks)
    assert PrefixSet.from_networks(prefixes.networks) == prefixes


@given(NETWORKS, NETWORKS)
def test_intersection(one: list[Network], other: list[Network]) -> None:
    both = PrefixSet.from_networks(one) & PrefixSet.from_networks(other)
    for address in edges(one + other):
        expected = naive(one, address) and naive(other, address)
        assert both.contains(address_number(str(address))) == expected
    assert PrefixSet.from_networks(both.networks) == both


@given(NETWORKS, NETWORKS)
def test_union(one: list[Network], other: list[Network]) -> None:
    sets = [PrefixSet.from_networks(one), PrefixSet.from_networks(other)]
    assert PrefixSet.union(sets) == PrefixSet.from_networks(one + other)


@given(NETWORKS)
def test_bounds_ascend_and_do_not_touch(networks: list[Network]) -> None:
    bounds = PrefixSet.from_networks(networks).bounds
    assert len(bounds) % 2 == 0
    assert all(one < other for one, other in pairwise(bounds))


def test_families_are_apart() -> None:
    four = PrefixSet.from_networks([ip_network("0.0.0.0/0")])
    assert four.contains(address_number("255.255.255.255"))
    assert not four.contains(address_number("::"))
    assert not four.contains(address_number("::5"))
    assert not PrefixSet.from_networks([ip_network("::/0")]).contains(address_number("0.0.0.5"))
    assert not PrefixSet().contains(address_number("192.0.2.1"))


@pytest.mark.parametrize("name", ["a.example", "", "10.0.0", "10.0.0.256", "::g"])
def test_a_name_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"(?i)address|octet|permitted"):
        address_number(name)


def test_an_address_of_every_kind() -> None:
    for text in ("192.0.2.1", "fd00::1", "::"):
        alone = PrefixSet.from_networks([ip_network(text)])
        assert alone.contains(address_number(text))
        assert alone.networks == (ip_network(text),)
        assert not alone.contains(address_number(str(ip_address(text) + 1)))
