"""UDP through the TUN: the same pipeline as by TPROXY, with packets for sockets."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from beyond import LINK, add_beyond, hops, let_through
from datagrams import ECHO, TELL, Served, answering, ask, echo, seen_by, talking, tell
from test_udp import (
    CLOSED,
    DEVICE,
    FORBIDDEN,
    MARKED,
    test_a_client_socket_has_one_address_for_all,
    test_a_closed_port_is_told,
    test_a_narrow_path_is_told,
    test_a_stranger_may_speak_and_is_answered,
    test_datagrams_of_any_size_pass,
    test_the_dscp_of_the_first_datagram,
)
from traffic import FAMILIES, Family, address, new_socket, running, target, upstream

from gateway.kernel.error_queue import ask_for_errors, told
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.namespaces import added, ip

__all__ = [
    "test_a_client_socket_has_one_address_for_all",
    "test_a_closed_port_is_told",
    "test_a_narrow_path_is_told",
    "test_a_stranger_may_speak_and_is_answered",
    "test_datagrams_of_any_size_pass",
    "test_the_dscp_of_the_first_datagram",
]

#: Goes to an outbound that carries no UDP.
UNCARRIED = 8003
UDP_SEGMENT = 103


@pytest.fixture(scope="module")
def servers(module_lab: Lab) -> Iterator[Served]:
    """Echo and tell on all targets, and echo two hops away; the forbidden ones are there, too."""
    lab = module_lab
    lab.start_upstream("sing-box")
    ip((added(host, "lo") for host in FORBIDDEN.values()), lab.internet.namespace)
    beyond = add_beyond(lab)
    with answering(lab, {ECHO: echo, TELL: tell, DEVICE: tell, MARKED: tell}) as servers:
        for family in FAMILIES:
            servers.add(beyond, LINK[family][1], DEVICE, echo)
        yield servers


@pytest.fixture(scope="module")
def gateway(
    module_lab: Lab, servers: Served, backend: str, workers: int
) -> Iterator[GatewayProcess]:
    """All to ``spare``, but for the ports of other ways."""
    lab = module_lab
    rules: list[dict[str, Any]] = [
        {"destination": [*FORBIDDEN.values()], "to": "reject"},
        {"port": [DEVICE, CLOSED], "to": "device"},
        {"port": UNCARRIED, "to": "tcp-only"},
        {"port": MARKED, "dscp": "ef", "to": "device"},
        {"to": "spare"},
    ]
    outbounds = {
        "spare": lab.socks("spare"),
        "device": {"type": "direct", "interface": "wan0"},
        "tcp-only": {**lab.socks("home"), "udp": False},
    }
    config = lab.config(*rules, outbounds=outbounds)
    config["inbound"] |= {"udp": "tun", "workers": workers}
    with running(lab, config, backend=backend) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def mode() -> str:
    """TCP's way makes no difference here."""
    return "tproxy"


@pytest.fixture
def client(module_lab: Lab) -> Machine:
    return module_lab.client("desk")


def test_datagrams_go_where_rules_say(
    module_lab: Lab, gateway: GatewayProcess, client: Machine, family: Family
) -> None:
    """By SOCKS, or by this machine's own sockets; and the flows are known by their client."""
    lab = module_lab
    with talking(client, target(lab, family), TELL) as sock:
        host, _, data = seen_by(ask(sock))
        assert (host in upstream(lab, "spare"), data) == (True, b"hello")
        clients = [flow["client"] for flow in gateway.flows() if flow["outbound"] == "spare"]
        port = sock.getsockname()[1]
        assert any(client.endswith(f":{port}") for client in clients)
    with talking(client, target(lab, family), DEVICE) as sock:
        assert seen_by(ask(sock))[0] == address(lab.router, family, "wan")


def test_what_nobody_carries_is_refused(
    module_lab: Lab, gateway: GatewayProcess, client: Machine, family: Family
) -> None:
    host = target(module_lab, family)
    with talking(client, host, UNCARRIED) as sock, pytest.raises(ConnectionRefusedError):
        ask(sock)


def test_trains_stay_together(
    module_lab: Lab, gateway: GatewayProcess, client: Machine, family: Family
) -> None:
    """Forty datagrams from one call, and as many back: each whole, and in order."""
    for port in (ECHO, DEVICE):
        with talking(client, target(module_lab, family), port) as sock:
            ask(sock)
            segment = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 1200))]
            parts = [bytes([number]) * 1200 for number in range(40)]
            sock.sendmsg(parts, segment)
            answers = [sock.recv(2000) for _ in parts]
            assert [answer[-1200:] for answer in answers] == parts
    assert not [name for name in gateway.counters() if name.startswith("tun_dropped_write")]


def test_a_path_shows_its_hops(
    module_lab: Lab, gateway: GatewayProcess, client: Machine, family: Family
) -> None:
    """What traceroute does by UDP: errors come from each hop, and the last one answers."""
    let_through(module_lab)
    far = LINK[family][1]
    for number, hosts in enumerate(hops(module_lab, family), 1):
        with talking(client, far, DEVICE) as sock:
            _limit(sock, number)
            ask_for_errors(sock)
            with pytest.raises(OSError):  # noqa: PT011 - whichever the family has for it
                ask(sock)
            _, control, _, _ = sock.recvmsg(100, 500, socket.MSG_ERRQUEUE)
            (error,) = told(control)
        assert error.host in hosts
        assert error.kind == (11 if family == 4 else 3)
    with talking(client, far, DEVICE) as sock:
        _limit(sock, 3)
        assert ask(sock, b"there") == b"there"


def _limit(sock: socket.socket, hops: int) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
    else:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)


def test_a_datagram_without_a_checksum_is_a_right_one(
    module_lab: Lab, gateway: GatewayProcess, client: Machine
) -> None:
    """In IPv4 (RFC 768): it is answered, and not counted among the broken ones."""
    host = target(module_lab, 4)
    before = gateway.counters()
    with new_socket(client, host, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
        sock.sendto(b"no sum", (host, ECHO))
        assert sock.recv(100) == b"no sum"
    assert gateway.counters().get("tun_dropped_udp_checksum", 0) == before.get(
        "tun_dropped_udp_checksum", 0
    )


def test_a_conversation_outlives_a_change_of_the_way(lab: Lab) -> None:
    """From TPROXY to the TUN and back: the far end sees one address all the time."""

    def config(udp: str) -> dict[str, Any]:
        device = {"device": {"type": "direct", "interface": "wan0"}}
        found = lab.config({"to": "device"}, outbounds=device)
        # One worker alone has the TUN: those of others begin anew there.
        found["inbound"] |= {"udp": udp, "workers": 1}
        return found

    with answering(lab, {TELL: tell}), running(lab, config("tproxy")) as gateway:
        for family in FAMILIES:
            with talking(lab.client("desk"), target(lab, family), TELL) as sock:
                seen = {seen_by(ask(sock))[:2]}
                for udp in ("tun", "tproxy"):
                    gateway.reload(config(udp))
                    seen.add(seen_by(ask(sock))[:2])
                assert len(seen) == 1
