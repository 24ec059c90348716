"""The header of relayed datagrams, and where a relay is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ProtocolError
from gateway.flow import Endpoint
from gateway.wire.socks5 import UDP_ASSOCIATE, ClientHandshake
from gateway.wire.socks5_udp import (
    FragmentError,
    decode_header,
    encode_header,
    header_size,
    relay_address,
)

ports = st.integers(0, 65535)
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-.", min_size=1, max_size=255).filter(
    lambda name: not name.replace(".", "").isdigit()
)
hosts = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).filter(lambda a: a.ipv4_mapped is None).map(str),
    names,
)


@given(st.builds(Endpoint, hosts, ports), st.binary(max_size=64))
def test_a_header_is_read_as_it_was_written(target: Endpoint, data: bytes) -> None:
    datagram = encode_header(target) + data
    size = header_size(datagram)
    assert datagram[size:] == data
    assert decode_header(datagram[:size]) == target


def test_the_bytes_are_those_of_the_rfc() -> None:
    assert encode_header(Endpoint("192.0.2.1", 53)) == bytes.fromhex("000000 01 c0000201 0035")
    assert encode_header(Endpoint("a.example", 53)) == b"\0\0\0\x03\x09a.example\0\x35"


@given(st.binary(max_size=300))
def test_no_bytes_are_taken_for_more_than_they_are(datagram: bytes) -> None:
    try:
        size = header_size(datagram)
        decode_header(datagram[:size])
    except ProtocolError:
        return
    assert size <= len(datagram)
    assert datagram[2] == 0


def test_fragments_are_told_apart() -> None:
    with pytest.raises(FragmentError):
        header_size(b"\0\0\x01\x01\x7f\0\0\x01\0\x35data")


def test_a_mapped_address_is_ipv4() -> None:
    mapped = encode_header(Endpoint("::ffff:192.0.2.1", 53))
    assert decode_header(mapped) == Endpoint("192.0.2.1", 53)


SERVER = Endpoint("203.0.113.5", 1080)


@pytest.mark.parametrize(
    ("bound", "server", "relay"),
    [
        (Endpoint("203.0.113.6", 4000), SERVER, Endpoint("203.0.113.6", 4000)),
        (Endpoint("0.0.0.0", 4000), SERVER, Endpoint("203.0.113.5", 4000)),
        (Endpoint("::", 4000), SERVER, Endpoint("203.0.113.5", 4000)),
        (Endpoint("2001:db8::1", 4000), SERVER, Endpoint("203.0.113.5", 4000)),
        (Endpoint("127.0.0.1", 4000), SERVER, Endpoint("203.0.113.5", 4000)),
        (Endpoint("relay.example", 4000), SERVER, Endpoint("203.0.113.5", 4000)),
        (None, SERVER, SERVER),
        # A private one where we have reached the server by a public one, and where not.
        (Endpoint("10.0.0.5", 4000), Endpoint("8.8.8.8", 1080), Endpoint("8.8.8.8", 4000)),
        (Endpoint("10.0.0.5", 4000), Endpoint("10.0.0.1", 1080), Endpoint("10.0.0.5", 4000)),
        (Endpoint("127.0.0.2", 4000), Endpoint("127.0.0.1", 1), Endpoint("127.0.0.2", 4000)),
    ],
)
def test_a_relay_address_of_no_use_is_replaced(
    bound: Endpoint | None, server: Endpoint, relay: Endpoint
) -> None:
    assert relay_address(bound, server) == relay


def test_an_association_is_asked_for_and_its_relay_told() -> None:
    handshake = ClientHandshake(Endpoint("0.0.0.0", 0), command=UDP_ASSOCIATE)
    assert handshake.opening() == b"\x05\x01\x00"
    assert handshake.feed(b"\x05\x00") == bytes.fromhex("05 03 00 01 00000000 0000")
    assert handshake.bound is None
    handshake.feed(bytes.fromhex("05 00 00 01 cb007105 0fa0"))
    assert handshake.established
    assert handshake.bound == Endpoint("203.0.113.5", 4000)


def test_a_name_that_is_none_is_no_relay() -> None:
    handshake = ClientHandshake(Endpoint("0.0.0.0", 0), command=UDP_ASSOCIATE)
    handshake.opening()
    handshake.feed(b"\x05\x00")
    handshake.feed(b"\x05\x00\x00\x03\x00\x0f\xa0")
    assert handshake.established
    assert handshake.bound is None
