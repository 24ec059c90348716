"""Values read from text, against ``ipaddress`` where it is the reference."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from gateway.config.scalars import (
    port_range,
    read_address,
    read_destination,
    read_domain,
    read_network,
)
from gateway.policy.names import NamePatterns

ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
NEAR = st.text(alphabet="0123456789abcdef.:/%- ", max_size=24)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(443, (443, 443)), ("443", (443, 443)), ("1-65535", (1, 65535)), ("80 - 90", (80, 90))],
)
def test_port_ranges(value: int | str, expected: tuple[int, int]) -> None:
    assert port_range(value) == expected


@pytest.mark.parametrize("value", [0, -1, 65536, "90-80", "", "-", "1-", "1-2-3", "x", "٣", 10**9])
def test_not_port_ranges(value: int | str) -> None:
    with pytest.raises(PydanticCustomError):
        port_range(value)


@given(ANYTHING | NEAR)
def test_networks_are_what_ipaddress_reads_from_text(value: object) -> None:
    try:
        network = read_network(value)
    except PydanticCustomError:
        return
    assert isinstance(value, str)
    assert network == ip_network(value)


@given(ANYTHING | NEAR)
def test_addresses_are_what_ipaddress_reads_from_text(value: object) -> None:
    try:
        address = read_address(value)
    except PydanticCustomError:
        return
    assert isinstance(value, str)
    assert address == ip_address(value)


@given(ANYTHING | NEAR)
def test_destinations_are_networks_or_names(value: object) -> None:
    try:
        destination = read_destination(value)
    except PydanticCustomError:
        return
    if isinstance(destination, str):
        assert destination == value
    else:
        assert destination == read_network(value)


@pytest.mark.parametrize(
    ("written", "matched", "others"),
    [
        ("A.Example.", ["a.example"], ["www.a.example", "xa.example", ""]),
        ("+.a.example", ["a.example", "x.y.a.example"], ["xa.example", "example"]),
        ("*.a.example", ["www.a.example"], ["a.example", "x.y.a.example", "wwwxa.example"]),
        ("www.*.example", ["www.a.example"], ["www.example", "www.a.b.example"]),
        ("keyword:Ads", ["ads.example", "my-ads1.example"], ["ad.example"]),
        (r"regex:^ad[0-9]+\.", ["ad1.example"], ["xad1.example", "ad.example"]),
        ("+.bücher.example", ["www.xn--bcher-kva.example"], ["bucher.example"]),
        ("_sip._tcp.example", ["_sip._tcp.example"], []),
    ],
)
def test_domains(written: str, matched: list[str], others: list[str]) -> None:
    patterns = NamePatterns.of([read_domain(written)])
    assert [name for name in (*matched, *others) if patterns.matches(name)] == matched


@pytest.mark.parametrize(
    "value",
    ["", ".", "+.", "*a.example", "+.*.example", "a..example", "regex:", "regex:(", "keyword:",
     "a example", "a/b", "x" * 64, 5, None, "other:x", "\u2024.example"],
)  # fmt: skip
def test_not_domains(value: object) -> None:
    with pytest.raises(PydanticCustomError):
        read_domain(value)


@given(ANYTHING | NEAR | st.text(alphabet="ab.*+:-é", max_size=12))
def test_what_is_read_as_a_domain_stays_as_it_is(value: object) -> None:
    try:
        domain = read_domain(value)
    except PydanticCustomError:
        return
    assert read_domain(domain) == domain
    NamePatterns.of([domain]).matches("a.example")
