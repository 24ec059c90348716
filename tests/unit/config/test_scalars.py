"""Values read from text, against ``ipaddress`` where it is the reference."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from gateway.config.scalars import port_range, read_address, read_destination, read_network

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
