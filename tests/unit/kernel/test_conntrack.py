"""Tracked flows, as the kernel writes them."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.kernel.conntrack import read_flow
from gateway.kernel.netlink import attribute, attributes, messages, request

NESTED = 0x8000
ENDS = {
    4: ("192.168.10.10", "203.0.113.9", "192.168.10.1"),
    6: ("fd00:10::10", "2001:db8::9", "fd00:10::1"),
}


def tuple_of(family: int, source: str, port: int, destination: str, to: int) -> bytes:
    first = 1 if family == 4 else 3
    ends = attribute(first, ip_address(source).packed)
    ends += attribute(first + 1, ip_address(destination).packed)
    ports = attribute(1, b"\x06") + attribute(2, port.to_bytes(2, "big"))
    ports += attribute(3, to.to_bytes(2, "big"))
    return attribute(1 | NESTED, ends) + attribute(2 | NESTED, ports)


def message(family: int, status: int, extra: bytes = b"") -> tuple[bytes, bytes]:
    """A flow from a client to port 443 of somewhere, answered from our port; and its first half."""
    client, remote, ours = ENDS[family]
    original = tuple_of(family, client, 40000, remote, 443)
    reply = tuple_of(family, ours, 7895, client, 40000)
    body = attribute(1 | NESTED, original) + attribute(2 | NESTED, reply)
    body += attribute(3, struct.pack("!I", status)) + extra
    head = struct.pack("!BBH", 2 if family == 4 else 10, 0, 0)
    return head + body, original


@pytest.mark.parametrize("family", ENDS)
@pytest.mark.parametrize("zone", [b"", attribute(18, b"\0\7")])
def test_a_translated_flow_and_what_names_it(family: int, zone: bytes) -> None:
    data, original = message(family, 0x1E | 1 << 5, zone)
    flow = read_flow(data)
    assert flow is not None
    assert flow.answers == ip_address(ENDS[family][2]).packed
    assert flow.port == 7895
    assert flow.name == attribute(1 | NESTED, original) + zone


@pytest.mark.parametrize("family", ENDS)
def test_others_are_not_looked_at(family: int) -> None:
    assert read_flow(message(family, 0x1E | 1 << 4)[0]) is None


@given(cut=st.integers(0, 200), family=st.sampled_from([4, 6]), noise=st.binary(max_size=60))
def test_any_bytes_are_read_or_left(cut: int, family: int, noise: bytes) -> None:
    read_flow(message(family, 1 << 5)[0][:cut] + noise)
    list(attributes(noise, 0))
    list(messages(noise))


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=9))), st.integers(0, 200))
def test_what_is_asked_is_read_again(asked: list[tuple[int, bytes]], cut: int) -> None:
    written = [request(kind, body) for kind, body in asked]
    data = b"".join(each + bytes(-len(each) % 4) for each in written)
    assert list(messages(data)) == asked
    found = [kind for kind, _ in messages(data[:cut])]
    assert found == [kind for kind, _ in asked][: len(found)]
