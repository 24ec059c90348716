"""UDP headers, checked by the definition of the checksum."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow import Endpoint
from gateway.wire.icmp_error import checksum
from gateway.wire.udp import encode_datagram

ENDS = {
    4: (Endpoint("192.0.2.1", 53), Endpoint("192.168.20.5", 40000)),
    6: (Endpoint("2001:db8::1", 53), Endpoint("fd00:20::5", 40000)),
}


@pytest.mark.parametrize("family", ENDS)
@given(data=st.binary(max_size=2000))
def test_receivers_find_the_checksum_right(family: int, data: bytes) -> None:
    source, destination = ENDS[family]
    datagram = encode_datagram(source, destination, data)
    pseudo = ip_address(source.host).packed + ip_address(destination.host).packed
    length = len(datagram).to_bytes(2, "big")
    assert checksum(pseudo + b"\0\x11" + length + datagram) == 0
    assert datagram[:6] == b"\0\x35\x9c\x40" + length
    assert datagram[6:8] != b"\0\0", "that would say that there is none (RFC 768)"
    assert datagram[8:] == data


def test_a_sum_of_ones_is_not_taken_for_no_checksum() -> None:
    """The data makes the sum come out as 0."""
    source, destination = ENDS[4]
    without = int.from_bytes(encode_datagram(source, destination, b"\0\0")[6:8], "big")
    assert encode_datagram(source, destination, without.to_bytes(2, "big"))[6:8] == b"\xff\xff"


def test_what_no_datagram_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="65536"):
        encode_datagram(*ENDS[4], bytes(65528))
