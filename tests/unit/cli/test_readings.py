"""Parsers of what the kernel and its tools print for the doctor."""

from __future__ import annotations

import os
import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.kernel import readings
from gateway.kernel.readings import ForeignDrop, Listener


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("0000000000000000", set()),
        ("0000000000003400", {"CAP_NET_BIND_SERVICE", "CAP_NET_ADMIN", "CAP_NET_RAW"}),
        ("000001ffffffffff", {"CAP_NET_BIND_SERVICE", "CAP_NET_ADMIN", "CAP_NET_RAW"}),
        ("0000000000001000", {"CAP_NET_ADMIN"}),
    ],
)
def test_capabilities(mask: str, expected: set[str]) -> None:
    status = f"Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t{mask}\nCapBnd:\tffffffffffffffff\n"
    assert readings.capabilities(status) == expected


@given(st.text())
def test_capabilities_of_anything(status: str) -> None:
    assert readings.capabilities(status) <= {
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_ADMIN",
        "CAP_NET_RAW",
    }


def test_forward_drops_are_the_foreign_base_chains_with_that_policy() -> None:
    base = {"family": "inet", "name": "forward", "hook": "forward", "policy": "drop"}
    chains = [
        {"table": "gateway", **base},
        {"table": "fw", **base},
        {"table": "fw2", **base, "policy": "accept"},
        {"table": "fw3", **base, "hook": "output"},
        {"family": "inet", "table": "fw", "name": "plain"},
    ]
    assert readings.forward_drops(chains) == [ForeignDrop("nft inet fw forward", "forward")]


def test_legacy_drops() -> None:
    saved = (
        "# Generated\n*filter\n:INPUT DROP [12:3456]\n:FORWARD ACCEPT [0:0]\n"
        ":OUTPUT DROP [0:0]\n:ufw-input - [0:0]\n-A INPUT -j DROP\nCOMMIT\n"
    )
    assert readings.legacy_drops("ip6", saved) == [
        ForeignDrop("ip6tables-legacy INPUT", "input", legacy=True)
    ]


TCP_HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"


def proc_line(address: bytes, port: int, state: str = "0A", inode: int = 4711) -> str:
    """A line of /proc/net/tcp as this machine would print it."""
    words = [
        f"{int.from_bytes(address[at : at + 4], sys.byteorder):08X}"
        for at in range(0, len(address), 4)
    ]
    local = f"{''.join(words)}:{port:04X}"
    queues = "00000000:00000000 00:00000000 00000000"
    return f"   0: {local} 00000000:0000 {state} {queues}  0 0 {inode} 1\n"


@given(
    address=st.ip_addresses(),
    port=st.integers(1, 65535),
    inode=st.integers(1, 2**32),
)
def test_listening(address: object, port: int, inode: int) -> None:
    packed = address.packed  # type: ignore[attr-defined]
    table = TCP_HEAD + proc_line(packed, port, inode=inode)
    assert readings.listening(table, port) == {inode: Listener(str(address), port)}
    assert readings.listening(table, port % 65535 + 1) == {}


def test_connections_are_no_listeners() -> None:
    table = TCP_HEAD + proc_line(bytes(4), 7895, state="01")
    assert readings.listening(table, 7895) == {}


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_the_owner_of_a_port_is_found(family: socket.AddressFamily, address: str) -> None:
    with socket.create_server((address, 0), family=family) as server:
        port = server.getsockname()[1]
        (found,) = readings.read((), frozenset({8801, 8802}), port).listeners
    assert (found.address, found.port, found.process) == (address, port, os.getpid())
    assert found.command


def test_reading_this_machine() -> None:
    found = readings.read((), frozenset({8801, 8802}), 1)
    assert found.listeners == ()
    assert found.file_limit > 0
    # Every network namespace begins with the rules for local, main and default.
    assert {(rule.priority, rule.table) for rule in found.rules} >= {(0, 255), (32_766, 254)}
