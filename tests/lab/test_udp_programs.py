"""Real programs over UDP, through real SOCKS servers: DNS, STUN, iperf3, HTTP/3, many flows."""

from __future__ import annotations

import hashlib
import select
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from datagrams import (
    ECHO,
    Served,
    answering,
    ask,
    echo,
    stun_answer,
    stun_mapped,
    stun_request,
    talking,
)
from quic_peer import body
from traffic import FAMILIES, Family, iperf3, new_socket, running, target, upstream, within

from gateway.kernel.sockets import family_of
from gateway.lab.gateway_process import ENVIRONMENT, GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.process import wait_until
from gateway.lab.upstreams import STARTERS

PEER = str(Path(__file__).with_name("quic_peer.py"))
DNS, NTP, STUN = 53, 123, 3478
HTTP3_BYTES = 50_000_000
FLOWS = 1000


def dns_answer(query: bytes, peer: Any) -> bytes:
    """192.0.2.53 for whatever is asked (RFC 1035 section 4)."""
    del peer
    end = query.index(b"\0", 12) + 5
    record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + socket.inet_aton("192.0.2.53")
    return query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + query[12:end] + record


def ntp_answer(request: bytes, peer: Any) -> bytes:
    """A server's packet with the client's time as its origin (RFC 5905 section 7.3)."""
    del peer
    return b"\x24\x01" + bytes(22) + request[40:48] + bytes(16)


@pytest.fixture(scope="module", params=["sing-box", "danted"])
def socks_server(request: pytest.FixtureRequest) -> str:
    """Each server that relays UDP."""
    return str(request.param)


@pytest.fixture(scope="module")
def gateway(module_lab: Lab, socks_server: str) -> Iterator[GatewayProcess]:
    """All to a real server, of which the lab has one at a time."""
    lab = module_lab
    (lab.directory / socks_server).mkdir(exist_ok=True)
    server = STARTERS[socks_server](
        lab.internet, lab.topology.upstreams["spare"], lab.directory / socks_server
    )
    config = lab.config({"to": "spare"}, outbounds={"spare": lab.socks("spare")})
    config["inbound"] = {"udp": "tproxy"}
    try:
        with running(lab, config) as gateway:
            yield gateway
    finally:
        server.stop()


@pytest.fixture(scope="module")
def servers(module_lab: Lab) -> Iterator[Served]:
    answers = {DNS: dns_answer, NTP: ntp_answer, STUN: stun_answer, ECHO: echo}
    with answering(module_lab, answers) as servers:
        yield servers


def test_dig(module_lab: Lab, servers: Served, gateway: GatewayProcess, family: Family) -> None:
    desk = module_lab.client("desk")
    asked = [f"@{target(module_lab, family)}", "a.example", "A"]
    command = ["dig", "+short", "+tries=1", "+time=20", *asked]
    assert desk.run(command).stdout.strip() == "192.0.2.53"


def test_ntp_and_stun(
    module_lab: Lab, servers: Served, gateway: GatewayProcess, family: Family
) -> None:
    """The time comes back; and a call learns the address that others can reach it at."""
    lab, desk = module_lab, module_lab.client("desk")
    host = target(lab, family)
    with talking(desk, host, NTP) as sock:
        request = b"\x23" + bytes(39) + b"my time."
        assert ask(sock, request)[24:32] == b"my time."
    with talking(desk, host, STUN) as sock:
        assert stun_mapped(ask(sock, stun_request()))[0] in upstream(lab, "spare")


@pytest.mark.parametrize("direction", [[], ["-R"]], ids=["up", "down"])
def test_iperf3(
    module_lab: Lab,
    servers: Served,
    gateway: GatewayProcess,
    family: Family,
    direction: list[str],
) -> None:
    """Datagrams at 20 Mbit/s, with iperf3's own TCP beside them."""
    lab, desk = module_lab, module_lab.client("desk")
    # It answers from the address that is nearest to its client: of the SOCKS server, its own.
    host = lab.topology.upstreams["spare"].addresses.of(family)

    def arrives() -> bool:
        """Most of it: whoever has the queue of a few is held up for a moment loses all the rest."""
        sums = iperf3(lab, desk, host, "-u", "-b", "20M", "-n", "2M", "-l", "1200", *direction)
        assert sums["sum"]["bytes"] >= 2_000_000
        return bool(sums["sum"]["lost_percent"] < 50)

    wait_until(arrives, "most of what is sent to arrive")


def test_http3(
    module_lab: Lab, socks_server: str, servers: Served, gateway: GatewayProcess
) -> None:
    """50 MB, of which every byte is right; one family by each server: QUIC in Python takes long."""
    lab, desk = module_lab, module_lab.client("desk")
    host = target(lab, 6 if socks_server == "sing-box" else 4)
    files = [str(lab.directory / name) for name in ("quic.crt", "quic.key")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=web"]
    lab.internet.run([*command, "-out", files[0], "-keyout", files[1]])
    command = [sys.executable, PEER, "serve", host, *files]
    # Whose log is its own: that of another one says that it is ready.
    server = lab.internet.start(f"http3-{socks_server}", command, ENVIRONMENT)
    try:
        server.wait_until(lambda: "ready" in server.log, "the HTTP/3 server")
        fetch = [sys.executable, PEER, "fetch", host, str(HTTP3_BYTES)]
        done = desk.run(fetch, environment=ENVIRONMENT, timeout_s=300)
        assert done.stdout.strip() == hashlib.sha256(body(HTTP3_BYTES)).hexdigest()
    finally:
        server.stop()


def test_one_socket_hears_everybody(
    module_lab: Lab, servers: Served, gateway: GatewayProcess, family: Family
) -> None:
    """Each far end that it asks in turn, through one association."""
    hosts = [target(module_lab, family, name) for name in ("web", "mirror", "blocked", "web")]
    with new_socket(module_lab.client("desk"), hosts[0], socket.SOCK_DGRAM) as sock:
        for host in hosts:
            sock.sendto(host.encode(), (host, ECHO))
            data, peer = sock.recvfrom(100)
            assert (data.decode(), peer[:2]) == (host, (host, ECHO))


def test_a_thousand_flows_at_a_time(
    module_lab: Lab, servers: Served, gateway: GatewayProcess
) -> None:
    """Of either family in turn; each hears its own answer."""
    lab, desk = module_lab, module_lab.client("desk")
    hosts = [target(lab, family) for family in FAMILIES] * (FLOWS // 2)
    socks = within(
        desk, lambda: [socket.socket(family_of(host), socket.SOCK_DGRAM) for host in hosts]
    )
    try:
        poll = select.epoll()
        waiting = {}
        for number, (sock, host) in enumerate(zip(socks, hosts, strict=True)):
            sock.connect((host, ECHO))
            poll.register(sock, select.EPOLLIN)
            waiting[sock.fileno()] = (sock, b"%d" % number)
        for _ in range(20):
            # What has had no answer is asked again, as a program would.
            # A server that has not granted a thousand associations in time is an error, once.
            for sock, data in waiting.values():
                with suppress(ConnectionRefusedError):
                    sock.send(data)
            while events := poll.poll(1.0):
                for fd, _ in events:
                    sock, data = waiting.get(fd, (None, b""))
                    if sock is None:
                        poll.unregister(fd)
                        continue
                    with suppress(ConnectionRefusedError):
                        assert sock.recv(100) == data
                        del waiting[fd]
            if not waiting:
                break
        assert not waiting
        live = [f for f in gateway.flows() if f["protocol"] == "udp" and f["state"] == "relaying"]
        assert len(live) >= FLOWS
    finally:
        for sock in socks:
            sock.close()
