"""Rules by name for UDP: the name in a QUIC client's first datagrams decides where they go."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from traffic import FAMILIES, Family, new_socket, running, target, wait_counter

from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab

PORT = 443
STUN = b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12)
WAYS: dict[str, dict[str, Any]] = {name: {"type": "direct"} for name in ("video", "calls", "rest")}
RULES: list[dict[str, Any]] = [
    {"domain": "+.blocked.example", "to": "reject"},
    {"domain": "+.video.example", "to": "video"},
    {"sniffed": "stun", "to": "calls"},
    {"to": "rest"},
]


@pytest.fixture(scope="module")
def gateway(module_lab: Lab, backend: str) -> Iterator[GatewayProcess]:
    config = module_lab.config(*RULES, outbounds=WAYS)
    config["inbound"]["udp"] = "tproxy"
    with running(module_lab, config, backend=backend) as it:
        yield it


@pytest.fixture(scope="module", autouse=True)
def echo(module_lab: Lab) -> Iterator[None]:
    """Everything that comes to the web server's UDP port is sent back."""

    def serve(sock: socket.socket) -> None:
        while True:
            data, peer = sock.recvfrom(65535)
            if data == b"stop":
                return
            sock.sendto(data, peer)

    threads = []
    for family in FAMILIES:
        host = target(module_lab, family)
        sock = new_socket(module_lab.internet, host, socket.SOCK_DGRAM)
        sock.settimeout(None)
        sock.bind((host, PORT))
        threads.append((host, sock, Thread(target=serve, args=(sock,), daemon=True)))
        threads[-1][2].start()
    yield
    for host, sock, thread in threads:
        with new_socket(module_lab.internet, host, socket.SOCK_DGRAM) as end:
            end.sendto(b"stop", (host, PORT))
        thread.join()
        sock.close()


def hello(name: str, protocols: int = 1) -> list[bytes]:
    """The datagrams of a QUIC client's hello; with many protocols it is in several."""
    offered = [f"protocol-number-{number}" for number in range(protocols)]
    settings = QuicConfiguration(server_name=name, alpn_protocols=offered)
    connection = QuicConnection(configuration=settings)
    connection.connect(("192.0.2.1", PORT), now=0.0)
    return [data for data, _ in connection.datagrams_to_send(now=0.0)]


def echoed(lab: Lab, family: Family, datagrams: list[bytes]) -> tuple[int, list[bytes]]:
    """Send these from one socket: its port, and what came back."""
    host = target(lab, family)
    with new_socket(lab.client("desk"), host, socket.SOCK_DGRAM) as client:
        client.connect((host, PORT))
        for datagram in datagrams:
            client.send(datagram)
        return client.getsockname()[1], [client.recv(65535) for _ in datagrams]


def flow_from(gateway: GatewayProcess, port: int) -> dict[str, Any]:
    (flow,) = [flow for flow in gateway.flows() if flow["client"].endswith(f":{port}")]
    return flow


@pytest.mark.parametrize("protocols", [1, 150])
def test_the_name_of_a_quic_client(
    module_lab: Lab, gateway: GatewayProcess, family: Family, protocols: int
) -> None:
    """Every datagram arrives, those that were kept back in front."""
    datagrams = hello("www.video.example", protocols)
    assert len(datagrams) >= (3 if protocols > 1 else 1)
    port, back = echoed(module_lab, family, datagrams)
    assert back == datagrams
    flow = flow_from(gateway, port)
    assert (flow["name"], flow["sniffed"]) == ("www.video.example", "quic")
    assert flow["outbound"] == "video"


def test_a_protocol_without_names(module_lab: Lab, gateway: GatewayProcess, family: Family) -> None:
    port, back = echoed(module_lab, family, [STUN, b"and more"])
    assert back == [STUN, b"and more"]
    assert flow_from(gateway, port)["outbound"] == "calls"


def test_a_hello_that_stays_without_its_end(
    module_lab: Lab, gateway: GatewayProcess, family: Family
) -> None:
    """When the time is over it goes on as it is."""
    timeouts = gateway.counters().get("sniff_timeout", 0)
    port, back = echoed(module_lab, family, hello("www.video.example", 150)[1:])
    assert len(back) >= 2
    flow = flow_from(gateway, port)
    assert (flow["name"], flow["sniffed"], flow["outbound"]) == ("", "quic", "rest")
    wait_counter(gateway, "sniff_timeout", timeouts + 1)


def test_a_rejected_name_is_unreachable(
    module_lab: Lab, gateway: GatewayProcess, family: Family
) -> None:
    """At once, so that a browser turns to TCP."""
    with pytest.raises(ConnectionRefusedError):
        echoed(module_lab, family, hello("www.blocked.example"))
