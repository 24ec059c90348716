"""ICMP errors: their bytes, and what of the network's own is passed on."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow import Endpoint
from gateway.wire.icmp_error import IcmpError, checksum, encode, from_wire

ports = st.integers(1, 65535)
v4 = st.builds(Endpoint, st.ip_addresses(v=4).map(str), ports)
v6 = st.builds(Endpoint, st.ip_addresses(v=6).map(str), ports)


@given(st.sampled_from(IcmpError), v4, v4, st.integers(0, 100_000))
def test_an_ipv4_error_quotes_the_datagram(
    error: IcmpError, source: Endpoint, destination: Endpoint, mtu: int
) -> None:
    message = encode(error, source, destination, mtu)
    assert checksum(message) == 0
    assert (message[0], message[1]) == error.value[0]
    assert int.from_bytes(message[6:8], "big") == min(mtu, 0xFFFF)
    quoted = message[8:]
    assert checksum(quoted[:20]) == 0
    assert quoted[12:16] == ip_address(source.host).packed
    assert quoted[16:20] == ip_address(destination.host).packed
    assert quoted[9] == 17
    assert int.from_bytes(quoted[20:22], "big") == source.port
    assert int.from_bytes(quoted[22:24], "big") == destination.port


@given(st.sampled_from(IcmpError), v6, v6, st.integers(1280, 65535))
def test_an_ipv6_error_quotes_the_datagram(
    error: IcmpError, source: Endpoint, destination: Endpoint, mtu: int
) -> None:
    message = encode(error, source, destination, mtu)
    assert (message[0], message[1]) == error.value[1]
    assert int.from_bytes(message[4:8], "big") == mtu
    quoted = message[8:]
    assert quoted[0] >> 4 == 6
    assert quoted[6] == 17
    assert quoted[8:24] == ip_address(source.host).packed
    assert quoted[24:40] == ip_address(destination.host).packed
    assert int.from_bytes(quoted[40:42], "big") == source.port


@pytest.mark.parametrize(
    ("family", "kind", "code", "error"),
    [
        (4, 3, 3, IcmpError.PORT_UNREACHABLE),
        (4, 3, 4, IcmpError.TOO_BIG),
        (4, 3, 10, IcmpError.HOST_UNREACHABLE),
        (4, 11, 0, IcmpError.TIME_EXCEEDED),
        (6, 1, 4, IcmpError.PORT_UNREACHABLE),
        (6, 2, 0, IcmpError.TOO_BIG),
        (6, 1, 5, IcmpError.HOST_UNREACHABLE),
        (6, 3, 0, IcmpError.TIME_EXCEEDED),
        (4, 11, 1, None),
        (4, 5, 0, None),
    ],
)
def test_what_is_passed_on(family: int, kind: int, code: int, error: IcmpError | None) -> None:
    assert from_wire(family, kind, code) is error


def test_the_checksum_is_that_of_the_rfc() -> None:
    """RFC 1071 section 3."""
    assert checksum(bytes.fromhex("0001 f203 f4f5 f6f7")) == 0xFFFF - 0xDDF2
