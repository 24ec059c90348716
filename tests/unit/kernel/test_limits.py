"""Descriptors: flows may not have the last ones, and who gets none says so."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.errors import ApplyError, CapabilityError
from gateway.flow import Endpoint
from gateway.kernel import libnftables, limits
from gateway.kernel.sockets import SocketFactory, SocketOptions
from gateway.kernel.splice import PipePool
from gateway.kernel.udp_sockets import UdpSockets


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def for_flows(monkeypatch):
    """``for_flows(2)``: from now on, flows may open two more, and other things go on."""

    def leave(room: int) -> None:
        free = os.open(os.devnull, os.O_RDONLY)
        os.close(free)
        monkeypatch.setattr(limits._FLOWS, "end", free + room)

    return leave


def test_some_are_kept_back():
    script = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
from gateway.kernel import limits
limits.raise_descriptor_limit()
print(*(limits.is_kept_back(int(n)) for n in sys.argv[2:]))
"""
    for limit, first in ((1024, 1024 - limits.KEPT_BACK), (64, 48)):
        command = [sys.executable, "-c", script, str(limit), str(first - 1), str(first)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["False", "True"]


def test_the_limit_is_raised_as_far_as_allowed_and_looked_at_again():
    script = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512))
from gateway.kernel import limits
before = limits.is_kept_back(300)
soft = limits.raise_descriptor_limit()
in_force, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
print(before, soft == in_force >= 512, limits.is_kept_back(300))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True", "False"]


def test_a_socket_of_a_flow_is_not_among_the_last(for_flows):
    before = open_descriptors()
    for_flows(0)
    with pytest.raises(OSError, match="Too many") as caught:
        SocketFactory(None).connect_tcp(Endpoint("127.0.0.1", 9), SocketOptions())
    assert caught.value.errno == errno.EMFILE
    assert open_descriptors() == before
    os.close(os.open(os.devnull, os.O_RDONLY))  # others go on


@pytest.mark.usefixtures("root")
def test_a_client_is_told_all_the_same(for_flows):
    """That its datagrams are refused for want of descriptors, with one that is soon free again."""
    for_flows(0)
    sockets = UdpSockets(SocketFactory(None))
    with pytest.raises(OSError, match="Too many"):
        sockets.open(socket.AF_INET, SocketOptions())
    sockets.open_icmp("127.0.0.1").close()


@pytest.mark.parametrize("room", [0, 1])
def test_nor_is_a_pipe(for_flows, room):
    before = open_descriptors()
    for_flows(room)
    assert PipePool().acquire() is None
    assert open_descriptors() == before


@pytest.mark.parametrize("room", range(4))
def test_without_descriptors_nftables_ends_nobody(descriptors, room):
    """Its library does, wherever it gets no socket."""
    try:
        libnftables._library()
    except CapabilityError as error:
        pytest.skip(str(error))
    descriptors(room)
    with pytest.raises(ApplyError, match="Too many open files") as caught:
        libnftables.run("list ruleset inet", terse=True)
    assert "LimitNOFILE" in caught.value.hint
