"""The ``tun:`` section: addresses that have room for two, and what is said of others."""

from __future__ import annotations

from ipaddress import ip_interface

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.config.tun import Tun


def test_defaults_leave_room_for_the_next_address() -> None:
    tun = Tun()
    for own in (tun.ipv4, tun.ipv6):
        assert own.ip + 1 in own.network


@pytest.mark.parametrize("text", ["10.9.0.1/30", "10.9.0.1/24", "10.9.0.6/24"])
def test_addresses_that_do(text: str) -> None:
    assert Tun.model_validate({"ipv4": text}).ipv4 == ip_interface(text)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("ipv4", "10.9.0.1", "not an address with a prefix length"),
        ("ipv4", 5, "not an address with a prefix length"),
        ("ipv4", "10.9.0.1/31", "no room for the next address"),
        ("ipv4", "10.9.0.2/30", "no room for the next address"),
        ("ipv4", "10.9.0.0/30", "no room for the next address"),
        ("ipv4", "255.255.255.255/8", "no room for the next address"),
        ("ipv4", "127.0.0.1/8", "nothing can be routed there"),
        ("ipv4", "fd00::1/126", "not an address of IPv4"),
        ("ipv6", "10.9.0.1/30", "not an address of IPv6"),
        ("ipv6", "fe80::1/64", "nothing can be routed there"),
        ("ipv6", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/8", "no room for the next address"),
        ("mtu", 1279, "greater than or equal to 1280"),
        ("name", "a b", "match pattern"),
        ("capture", "all", "lan"),
    ],
)
def test_what_is_refused_and_why(key: str, value: object, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Tun.model_validate({key: value})


@given(st.text(max_size=30) | st.ip_addresses().map(lambda a: f"{a}/30"))
def test_any_text_is_an_address_or_an_error(text: str) -> None:
    for key in ("ipv4", "ipv6"):
        try:
            own = getattr(Tun.model_validate({key: text}), key)
        except ValidationError:
            continue
        assert own.ip + 1 in own.network
