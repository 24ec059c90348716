"""An active flow of a soak notices when other bytes come back than it sent."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from gateway.lab.load.talk import BLOCK, Flow


@pytest.fixture(params=["127.0.0.1", "::1"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Flow, socket.socket]]:
    """A flow that has sent what goes at once, and its far end."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family) as listener:
        flow = Flow(listener.getsockname()[:2])
        with flow.sock, listener.accept()[0] as peer:
            flow.send()
            yield flow, peer


def received(flow: Flow) -> int:
    """Once something is there."""
    assert select.select([flow.sock], [], [], 60)[0]
    return flow.receive()


def receive_on(flow: Flow) -> None:
    """All that comes."""
    while flow.received <= len(BLOCK):
        received(flow)


def test_the_same_bytes_are_counted(ends: tuple[Flow, socket.socket]) -> None:
    flow, peer = ends
    peer.sendall(peer.recv(1000, socket.MSG_WAITALL))
    assert received(flow) == 1000
    assert flow.received == 1000
    peer.sendall(BLOCK[1000:1010])
    assert received(flow) == 10


@pytest.mark.parametrize("wrong", [BLOCK[1:100], b"\0", BLOCK + b"more"], ids=len)
def test_other_bytes_are_an_error(ends: tuple[Flow, socket.socket], wrong: bytes) -> None:
    flow, peer = ends
    peer.sendall(wrong)
    with pytest.raises(ConnectionError):
        receive_on(flow)


def test_an_early_end_is_an_error(ends: tuple[Flow, socket.socket]) -> None:
    flow, peer = ends
    peer.close()
    with pytest.raises(ConnectionError):
        received(flow)


def test_where_nobody_listens_a_flow_fails() -> None:
    with socket.socket() as holder:  # so that nobody will
        holder.bind(("127.0.0.1", 0))
        flow = Flow(holder.getsockname())
        with flow.sock, pytest.raises(ConnectionError):
            received(flow)
