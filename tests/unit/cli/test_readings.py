"""Parsers of what the kernel and its tools print for the doctor."""

from __future__ import annotations

import os
import socket

import pytest

from gateway.kernel import readings
from gateway.kernel.readings import ForeignDrop


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


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_the_owner_of_a_port_is_found(family: socket.AddressFamily, address: str) -> None:
    with socket.create_server((address, 0), family=family) as server:
        port = server.getsockname()[1]
        listeners = readings.read((), frozenset({8801, 8802}), port).listeners
    # Somebody else may listen on the same number of the other family.
    (found,) = (one for one in listeners if one.address == address)
    assert (found.port, found.process) == (port, os.getpid())
    assert found.command


def test_reading_this_machine() -> None:
    found = readings.read((), frozenset({8801, 8802}), 1)
    assert found.listeners == ()
    assert found.file_limit > 0
    # Every network namespace begins with the rules for local, main and default.
    assert {(rule.priority, rule.table) for rule in found.rules} >= {(0, 255), (32_766, 254)}
