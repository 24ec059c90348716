"""What the kernel tells of a flow's ends: neighbours and owners."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow import Endpoint, Owner, Protocol
from gateway.kernel.neighbours import FRESH_S, Neighbours, ask_kernel, hardware_address
from gateway.kernel.owners import Owners, read_owner
from gateway.kernel.sockets import local_endpoint


def test_an_answer_is_asked_for_again_after_a_while() -> None:
    asked: list[tuple[str, int]] = []
    now = [0.0]

    def ask(host: str, interface: int) -> str | None:
        asked.append((host, interface))
        return f"02:00:5e:00:53:{len(asked):02}"

    neighbours = Neighbours(ask, lambda: now[0])
    assert neighbours.mac("192.0.2.1", 2) == "02:00:5e:00:53:01"
    assert neighbours.mac("192.0.2.1", 2) == "02:00:5e:00:53:01"
    assert neighbours.mac("192.0.2.1", 3) == "02:00:5e:00:53:02"
    now[0] = FRESH_S
    assert neighbours.mac("192.0.2.1", 2) == "02:00:5e:00:53:03"
    assert asked == [("192.0.2.1", 2), ("192.0.2.1", 3), ("192.0.2.1", 2)]


def test_a_host_that_was_not_known_is_asked_for_with_its_next_flow() -> None:
    """Its first datagram comes before anybody has answered it; its second is a device's."""
    answers = [None, "02:00:5e:00:53:01"]
    neighbours = Neighbours(lambda *_: answers.pop(0), lambda: 0.0)
    assert neighbours.mac("192.0.2.1", 2) is None
    assert neighbours.mac("192.0.2.1", 2) == "02:00:5e:00:53:01"
    assert neighbours.mac("192.0.2.1", 2) == "02:00:5e:00:53:01"


@pytest.mark.parametrize("host", ["192.0.2.77", "fd00:77::1"])
def test_a_host_that_nobody_has_heard_of(host: str) -> None:
    assert ask_kernel(host, 1) is None


@given(st.binary(max_size=80))
def test_any_answer(answer: bytes) -> None:
    hardware_address(answer)
    hardware_address(answer[:4] + b"\x1c\0" + answer)
    read_owner(answer)
    read_owner(answer[:4] + b"\x14\0" + answer)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_owner_of_a_connection(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        listener.listen()
        with socket.socket(family) as client:
            client.connect(listener.getsockname())
            source, destination = local_endpoint(client), local_endpoint(listener)
            owner = Owners().owner(Protocol.TCP, source, destination)
    assert owner.uid == os.getuid()
    assert owner.gid is None


def test_a_flow_of_nobody_here() -> None:
    nowhere = Endpoint("192.0.2.1", 1), Endpoint("192.0.2.2", 2)
    for protocol in Protocol:
        assert Owners().owner(protocol, *nowhere) == Owner()


def test_a_cgroup_by_the_number_of_its_directory(tmp_path: Path) -> None:
    (tmp_path / "a.slice" / "b").mkdir(parents=True)
    owners = Owners(tmp_path)
    assert owners._path((tmp_path / "a.slice" / "b").stat().st_ino) == "a.slice/b"
    assert owners._path(0) is None
