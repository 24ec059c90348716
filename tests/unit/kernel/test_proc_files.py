"""What /proc says: listening sockets, and capabilities."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.kernel.listening import ListeningSocket, parse
from gateway.kernel.privilege import Capability, read_set

TCP_HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"


def proc_line(address: bytes, port: int, *, state: str = "0A", inode: int = 4711) -> str:
    """A line of /proc/net/tcp as this machine would print it."""
    words = [
        f"{int.from_bytes(address[at : at + 4], sys.byteorder):08X}"
        for at in range(0, len(address), 4)
    ]
    local = f"{''.join(words)}:{port:04X}"
    queues = "00000000:00000000 00:00000000 00000000"
    return f"   0: {local} 00000000:0000 {state} {queues}  33 0 {inode} 1\n"


@given(address=st.ip_addresses(), port=st.integers(1, 65535), inode=st.integers(1, 2**32))
def test_listening(address: IPv4Address | IPv6Address, port: int, inode: int) -> None:
    table = TCP_HEAD + proc_line(address.packed, port, inode=inode)
    assert list(parse(table)) == [ListeningSocket(str(address), port, 33, inode)]


@pytest.mark.parametrize("table", ["", TCP_HEAD, f"{TCP_HEAD}   0: 0000", f"{TCP_HEAD}\n"])
def test_a_table_without_any(table: str) -> None:
    assert list(parse(table)) == []


def test_connections_do_not_listen() -> None:
    assert list(parse(TCP_HEAD + proc_line(bytes(4), 7895, state="01"))) == []


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("0000000000000000", set()),
        ("0000000000203400", set(Capability)),
        ("000001ffffffffff", set(Capability)),
        ("0000000000001000", {Capability.NET_ADMIN}),
    ],
)
def test_capabilities(mask: str, expected: set[Capability]) -> None:
    status = f"Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t{mask}\nCapBnd:\t0\n"
    bits = read_set(status, "CapEff")
    assert {each for each in Capability if bits >> each & 1} == expected


@given(st.text())
def test_capabilities_of_anything(status: str) -> None:
    assert read_set(status, "CapEff") >= 0
