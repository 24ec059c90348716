"""Every wait of a flow is bounded; tiny bounds show it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from traffic import (
    Family,
    dial,
    flow_of,
    listen,
    read,
    reset_flow,
    running,
    target,
    wait_counter,
)

from gateway.lab import serve
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab

SHORT = {"connect": 0.3, "idle": 0.3, "half_closed": 0.3}


@pytest.fixture(scope="module")
def hasty(module_lab: Lab) -> Iterator[GatewayProcess]:
    """A gateway with tiny time-outs, and a SOCKS server that accepts but never answers."""
    mute = "198.51.100.20"
    outbounds = {"home": module_lab.socks("home"), "mute": {"type": "socks5", "server": mute}}
    rules: list[dict[str, Any]] = [{"port": 4242, "to": "mute"}, {"to": "home"}]
    config = module_lab.config(*rules, outbounds=outbounds) | {"timeouts": SHORT}
    with listen(module_lab.internet, mute, 1080), running(module_lab, config) as gateway:
        yield gateway


def test_an_upstream_that_does_not_answer_is_given_up(
    module_lab: Lab, hasty: GatewayProcess, family: Family
) -> None:
    """After `timeouts.connect` the client gets a reset, and the record says why."""
    host = target(module_lab, family)
    flow = reset_flow(hasty, module_lab.client("desk"), host, 4242)
    assert flow["close_reason"] == "connect-timeout"


def test_an_idle_flow_is_ended(module_lab: Lab, hasty: GatewayProcess, family: Family) -> None:
    """Bytes moved before do not save it."""
    desk, host = module_lab.client("desk"), target(module_lab, family)
    with ExitStack() as clients:
        for _ in range(20):
            client = clients.enter_context(dial(desk, host, serve.ECHO_PORT))
            port = client.getsockname()[1]
            if has_moved(client):
                break
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    flow = flow_of(hasty, port)
    assert (flow["bytes_up"], flow["close_reason"]) == (10, "idle-timeout")


def has_moved(client: socket.socket) -> bool:
    """Whether bytes go there and back; a busy machine may be too slow for the tiny time-outs."""
    try:
        client.sendall(b"still here")
        return read(client, 10) == b"still here"
    except ConnectionError:
        return False


def test_a_half_closed_flow_is_ended_by_its_own_limit(lab: Lab, family: Family) -> None:
    """With a long idle limit, the short half-closed one counts, from the last byte on."""
    config = lab.config({"to": "home"})
    config["timeouts"] = {"half_closed": 0.3, "idle": 1000}
    host = target(lab, family)
    with (
        listen(lab.internet, host, 4243) as server,
        running(lab, config) as gateway,
        dial(lab.client("desk"), host, 4243) as client,
    ):
        peer, _ = server.accept()
        with peer:
            client.shutdown(socket.SHUT_WR)
            assert peer.recv(1) == b""
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        wait_counter(gateway, "closed_idle-timeout")
