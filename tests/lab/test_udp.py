"""UDP through the real gateway: by SOCKS5 and by this machine's own sockets, and what errors do."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from datagrams import ECHO, TELL, Served, answering, ask, echo, seen_by, talking, tell
from traffic import FAMILIES, Family, address, new_socket, running, target, upstream

from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.namespaces import added, ip
from gateway.lab.process import wait_until

#: Ports of the ways out, besides the SOCKS server.
DEVICE, PRESERVED, CLOSED = 8001, 8002, 8009
#: By DSCP to the one, or to the other.
MARKED = 8004
#: Whom clients must not speak to.
FORBIDDEN = {4: "198.51.100.66", 6: "2001:db8:51::66"}
#: A port that a program of the router has, too.
BUSY = 8003
WAYS: dict[str, dict[str, Any]] = {
    "device": {"type": "direct", "interface": "wan0"},
    "preserve": {"type": "direct", "preserve_source": True},
}


@pytest.fixture(scope="module")
def servers(module_lab: Lab) -> Iterator[Served]:
    """Echo and tell on all targets; the forbidden ones are the internet's, too."""
    module_lab.start_upstream("sing-box")
    ip((added(host, "lo") for host in FORBIDDEN.values()), module_lab.internet.namespace)
    ports = dict.fromkeys((TELL, DEVICE, PRESERVED, BUSY, MARKED), tell)
    with answering(module_lab, {ECHO: echo, **ports}) as servers:
        yield servers


@pytest.fixture(scope="module")
def gateway(module_lab: Lab, servers: Served, backend: str, mode: str) -> Iterator[GatewayProcess]:
    """All to ``spare``, but for the ports of other ways; this machine's traffic too."""
    lab = module_lab
    rules = [
        {"destination": [*FORBIDDEN.values()], "to": "reject"},
        {"port": [DEVICE, CLOSED], "to": "device"},
        {"port": PRESERVED, "to": "preserve"},
        {"port": MARKED, "dscp": "ef", "to": "device"},
        {"to": "spare"},
    ]
    outbounds = {"spare": lab.socks("spare"), **WAYS}
    config = lab.config(*rules, outbounds=outbounds)
    config["lan"]["this_machine"] = True
    config["inbound"] |= {"udp": "tproxy", "workers": 2}
    with running(lab, config, backend=backend, mode=mode) as gateway:
        yield gateway


@pytest.fixture(params=["desk", "router"])
def client(request: pytest.FixtureRequest, module_lab: Lab) -> Machine:
    """A LAN host, and the gateway's own machine."""
    return module_lab.machines[request.param]


def test_datagrams_go_through_the_socks_server(
    module_lab: Lab, gateway: GatewayProcess, client: Machine
) -> None:
    """Both ways, by whom they were sent to; and the server sees the SOCKS server."""
    lab = module_lab
    for family in FAMILIES:
        with talking(client, target(lab, family), TELL) as sock:
            host, _, data = seen_by(ask(sock))
        assert (host in upstream(lab, "spare"), data) == (True, b"hello")
    flows = [flow for flow in gateway.flows() if flow["protocol"] == "udp"]
    assert {flow["outbound"] for flow in flows} == {"spare"}


def test_datagrams_go_by_this_machines_own_sockets(
    module_lab: Lab, gateway: GatewayProcess, client: Machine, family: Family
) -> None:
    """From the gateway's address, or from the client's."""
    lab = module_lab
    with talking(client, target(lab, family), DEVICE) as sock:
        assert seen_by(ask(sock))[0] == address(lab.router, family)
    if client is lab.router:
        return
    with talking(client, target(lab, family), PRESERVED) as sock:
        assert seen_by(ask(sock))[0] == address(client, family)


def test_a_client_socket_has_one_address_for_all(
    module_lab: Lab, gateway: GatewayProcess, client: Machine, family: Family
) -> None:
    """Endpoint-independent mapping, across workers: all datagrams of a socket reach one."""
    lab = module_lab
    hosts = [pair.of(family) for pair in lab.topology.targets.values()]
    for port in (TELL, DEVICE):
        with new_socket(client, hosts[0], socket.SOCK_DGRAM) as sock:
            seen = set()
            for host in [*hosts, *reversed(hosts)]:
                sock.sendto(b"who?", (host, port))
                answer, peer = sock.recvfrom(100)
                assert peer[0] == host
                seen.add(seen_by(answer)[:2])
            assert len(seen) == 1


def test_a_stranger_may_speak_and_is_answered(
    module_lab: Lab, servers: Served, gateway: GatewayProcess, client: Machine, family: Family
) -> None:
    """Endpoint-independent filtering; what the client answers is no reply to be let by.

    Whom it must not speak to does not speak to it either.
    """
    lab = module_lab
    with new_socket(client, target(lab, family), socket.SOCK_DGRAM) as sock:
        sock.sendto(b"where am I?", (target(lab, family), TELL))
        outside = seen_by(sock.recv(100))[:2]
        stranger = new_socket(lab.internet, target(lab, family, "blocked"), socket.SOCK_DGRAM)
        with stranger:
            stranger.bind((target(lab, family, "blocked"), 7777))
            for _ in range(3):
                stranger.sendto(b"psst", outside)
                data, peer = sock.recvfrom(100)
                assert (data, peer[:2]) == (b"psst", stranger.getsockname()[:2])
                sock.sendto(b"yes?", peer)
                assert stranger.recvfrom(100) == (b"yes?", _like(stranger, outside))
            refused = new_socket(lab.internet, FORBIDDEN[family], socket.SOCK_DGRAM)
            with refused:
                refused.bind((FORBIDDEN[family], 7777))
                refused.sendto(b"hello, child", outside)
            stranger.sendto(b"it is only me", outside)
            assert sock.recv(100) == b"it is only me"
    assert gateway.counters()["udp_dropped_stranger"] >= 1


def _like(sock: socket.socket, outside: tuple[str, int]) -> tuple[Any, ...]:
    return outside if sock.family == socket.AF_INET else (*outside, 0, 0)


EF = 46


def test_the_dscp_of_the_first_datagram(
    module_lab: Lab, gateway: GatewayProcess, client: Machine, family: Family
) -> None:
    """It decides, whatever those have that follow; congestion marks are not of it."""
    lab, host = module_lab, target(module_lab, family)

    def ask_as(sock: socket.socket, dscp: int, ecn: int) -> tuple[str, int]:
        if family == 4:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, dscp << 2 | ecn)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, dscp << 2 | ecn)
        return seen_by(ask(sock))[:2]

    ways = {EF: {address(lab.router, family, "wan")}, 0: upstream(lab, "spare")}
    for first, other in ((EF, 0), (0, EF)):
        with talking(client, host, MARKED) as sock:
            seen = ask_as(sock, first, 0)
            assert seen[0] in ways[first]
            assert {ask_as(sock, dscp, ecn) for dscp, ecn in ((first, 1), (other, 0))} == {seen}


def test_datagrams_of_any_size_pass(
    module_lab: Lab, gateway: GatewayProcess, family: Family
) -> None:
    """In fragments, where they are larger than the link takes; none at all is a size, too."""
    desk = module_lab.client("desk")
    # sing-box cuts off what is larger than its buffer.
    for port, sizes in ((ECHO, (0, 1, 1472, 1473, 9000)), (DEVICE, (0, 1463, 20_000, 60_000))):
        with talking(desk, target(module_lab, family), port) as sock:
            for size in sizes:
                data = bytes([size % 251]) * size
                answer = ask(sock, data)
                assert (seen_by(answer)[2] if port == DEVICE else answer) == data


def test_answers_come_from_a_port_that_a_program_here_has(
    module_lab: Lab, gateway: GatewayProcess, client: Machine, family: Family
) -> None:
    """No socket can be bound to it; the program hears nothing of it all."""
    lab, host = module_lab, target(module_lab, family)
    with new_socket(lab.router, host, socket.SOCK_DGRAM) as program:
        if family == 6:
            program.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        program.bind(("", BUSY))
        program.setblocking(False)
        with talking(client, host, BUSY) as sock:
            for size in (0, 1, 1200, 9000):
                data = bytes([size % 251]) * size
                assert seen_by(ask(sock, data))[2] == data
        with pytest.raises(BlockingIOError):
            program.recv(1)
    assert gateway.counters()["udp_replies_raw"] >= 1


def test_a_closed_port_is_told(
    module_lab: Lab, gateway: GatewayProcess, client: Machine, family: Family
) -> None:
    """The far end's ICMP error reaches the client as the far end's."""
    host = target(module_lab, family)
    with talking(client, host, CLOSED) as sock, pytest.raises(ConnectionRefusedError):
        ask(sock)


def test_a_narrow_path_is_told(module_lab: Lab, gateway: GatewayProcess, family: Family) -> None:
    """A datagram that must not be fragmented meets a link of MTU 1280: the client learns of it."""
    lab, desk = module_lab, module_lab.client("desk")
    narrow = {4: "198.51.100.99", 6: "2001:db8:51::99"}[family]
    internet = lab.internet
    internet.sysctl("net.ipv4.ip_forward", "1")
    internet.sysctl("net.ipv6.conf.all.forwarding", "1")
    pair = ["narrow0", "mtu", "1280", "type", "veth", "peer", "name", "narrow1"]
    internet.run(["ip", "link", "add", *pair])
    try:
        for end in ("narrow0", "narrow1"):
            internet.run(["ip", "link", "set", end, "up"])
        internet.run(["ip", "route", "add", narrow, "dev", "narrow0"])
        with talking(desk, narrow, DEVICE) as sock:
            if family == 4:
                sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_DO)

            def told() -> bool:
                try:
                    sock.send(bytes(1400))
                except OSError as error:
                    return error.errno == errno.EMSGSIZE
                return False

            wait_until(told, "the client to know the path's MTU")
    finally:
        internet.run(["ip", "link", "del", "narrow0"])
        internet.sysctl("net.ipv4.ip_forward", "0")
        internet.sysctl("net.ipv6.conf.all.forwarding", "0")


IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 23, 2


def test_flows_are_spread_over_the_workers(module_lab: Lab, gateway: GatewayProcess) -> None:
    """By the client's socket, so that none is ever torn between two."""
    desk = module_lab.client("desk")
    for _ in range(20):
        with talking(desk, target(module_lab, 4)) as sock:
            ask(sock)
    workers: dict[str, set[int]] = {}
    for flow in gateway.flows():
        if flow["protocol"] == "udp":
            workers.setdefault(flow["client"], set()).add(flow["id"] % 2)
    assert all(len(of_client) == 1 for of_client in workers.values())
    assert set.union(*workers.values()) == {0, 1}
