"""Rules by name for UDP: the name in a QUIC client's first datagrams decides where they go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from datagrams import Relay, Served, answering, echo, talking
from traffic import Family, running, target, targets, wait_counter

from gateway.flow import Endpoint
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.wire.socks5_udp import encode_header, header_size

PORT = 443
STUN = b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12)
WAYS: dict[str, dict[str, Any]] = {name: {"type": "direct"} for name in ("video", "calls", "rest")}
RULES: list[dict[str, Any]] = [
    {"domain": "+.blocked.example", "to": "reject"},
    {"domain": "+.video.example", "to": "video"},
    {"sniffed": "stun", "to": "calls"},
    {"to": "rest"},
]


#: As long as may be: a client that is held up on a busy machine is still to be heard.
PATIENT: dict[str, Any] = {"timeout": 10}


def settings(lab: Lab, backend: str, **sniff: Any) -> dict[str, Any]:
    """The gateway's configuration, with these ``sniff`` settings."""
    config = lab.config(*RULES, outbounds=WAYS) | {"sniff": PATIENT | sniff}
    config["inbound"] |= {"udp": "tproxy", "backend": backend}
    return config


@pytest.fixture(scope="module")
def gateway(module_lab: Lab, backend: str) -> Iterator[GatewayProcess]:
    with running(module_lab, settings(module_lab, backend)) as it:
        yield it


@pytest.fixture(scope="module", autouse=True)
def servers(module_lab: Lab) -> Iterator[Served]:
    """Everything that comes to the hosts' UDP port is sent back."""
    with answering(module_lab, {PORT: echo}) as servers:
        yield servers


def hello(name: str, protocols: int = 1) -> list[bytes]:
    """The datagrams of a QUIC client's hello; with many protocols it is in several."""
    offered = [f"protocol-number-{number}" for number in range(protocols)]
    settings = QuicConfiguration(server_name=name, alpn_protocols=offered)
    connection = QuicConnection(configuration=settings)
    connection.connect(("192.0.2.1", PORT), now=0.0)
    return [data for data, _ in connection.datagrams_to_send(now=0.0)]


def echoed(lab: Lab, family: Family, datagrams: list[bytes]) -> tuple[int, list[bytes]]:
    """Send these from one socket: its port, and what came back."""
    with talking(lab.client("desk"), target(lab, family), PORT) as client:
        for datagram in datagrams:
            client.send(datagram)
        return client.getsockname()[1], [client.recv(65535) for _ in datagrams]


def flow_from(gateway: GatewayProcess, port: int) -> dict[str, Any]:
    """The newest from this port."""
    found = (flow for flow in gateway.flows() if flow["client"].endswith(f":{port}"))
    return max(found, key=lambda flow: float(flow["started"]))


@pytest.mark.parametrize("says", ["address", "name"])
def test_the_server_resolves_the_name(module_lab: Lab, family: Family, says: str) -> None:
    """`override: target`: it is asked by name, and answers as the address of its choice, or so.

    The client hears whom it has asked. With `sniff: off` the address stays.
    """
    lab, name = module_lab, "www.video.example"
    server = Endpoint(lab.topology.upstreams["spare"].addresses.ipv4, 1081)
    relay = Relay(lab.internet, *server)
    relay.names[name] = target(lab, 4)
    if says == "name":
        header = encode_header(Endpoint(name, PORT))
        relay.change = lambda answer: [header + answer[header_size(answer) :]]
    way = {"type": "socks5", "server": server.host, "port": server.port}
    rules = ({"destination": targets(lab, "web"), "sniff": False, "to": "relay"}, {"to": "relay"})
    sniff = PATIENT | {"override": "target"}
    config = lab.config(*rules, outbounds={"relay": way}) | {"sniff": sniff}
    config["inbound"] |= {"udp": "tproxy", "workers": 1}

    def asked_for(host: str, *datagrams: bytes) -> tuple[set[Endpoint], dict[str, Any]]:
        """What the server was asked for, and the flow."""
        relay.asked.clear()
        with talking(lab.client("desk"), host, PORT) as client:
            for datagram in datagrams:
                client.send(datagram)
                assert client.recv(65535) == datagram
            return {*relay.asked}, flow_from(gateway, client.getsockname()[1])

    try:
        with running(lab, config) as gateway:
            mirror = target(lab, family, "mirror")
            asked, flow = asked_for(mirror, *hello(name), b"one more", b"and another")
            assert asked == {Endpoint(name, PORT)}
            assert (flow["name"], flow["destination"]) == (name, str(Endpoint(mirror, PORT)))
            if says == "address":
                web = target(lab, family)
                assert asked_for(web, *hello(name))[0] == {Endpoint(web, PORT)}
                return
            # Of one that was asked by address, an answer by name is nobody's.
            with talking(lab.client("desk"), target(lab, family), PORT) as client:
                client.send(b"not QUIC")
                wait_counter(gateway, "udp_dropped_stranger")
    finally:
        relay.close()


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
    module_lab: Lab, gateway: GatewayProcess, backend: str, family: Family
) -> None:
    """When the time is over it goes on as it is."""
    gateway.reload(settings(module_lab, backend, timeout=0.3))
    timeouts = gateway.counters().get("sniff_timeout", 0)
    port, back = echoed(module_lab, family, hello("www.video.example", 150)[1:])
    assert len(back) >= 2
    flow = flow_from(gateway, port)
    assert (flow["name"], flow["sniffed"], flow["outbound"]) == ("", "quic", "rest")
    wait_counter(gateway, "sniff_timeout", timeouts + 1)
    gateway.reload(settings(module_lab, backend))


def test_a_rejected_name_is_unreachable(
    module_lab: Lab, gateway: GatewayProcess, family: Family
) -> None:
    """At once, so that a browser turns to TCP."""
    with pytest.raises(ConnectionRefusedError):
        echoed(module_lab, family, hello("www.blocked.example"))
