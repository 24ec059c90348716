"""TCP that comes to the TUN in fragments: whichever queue they meet, their flow has them whole."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address

import pytest
from traffic import Family, address, running, target, within

from gateway.lab import serve
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.wire.fragments import split
from gateway.wire.ip import (
    ACK,
    SYN,
    TCP,
    V4_HEADER,
    Malformed,
    TcpHeader,
    checksum,
    ip_packet,
    read_ip,
    read_tcp,
    transport_checksum,
)

#: Of either queue.
PORTS = range(40000, 40008)
HELLO, LONG = b"hello " * 10, bytes(range(256)) * 5
#: Of IPv6's fragments; IPv4's may be of any size.
MTU = 1280


@pytest.fixture(scope="module", params=[1, 2])
def gateway(
    request: pytest.FixtureRequest, module_lab: Lab, backend: str
) -> Iterator[GatewayProcess]:
    config = module_lab.config({"to": "home"})
    config["inbound"] = {"tcp": "tun", "udp": "off", "workers": request.param}
    with running(module_lab, config, backend=backend) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def client(module_lab: Lab) -> Machine:
    """Its kernel knows nothing of the connections, and must not say so."""
    desk = module_lab.client("desk")
    chain = "add chain inet quiet output { type filter hook output priority 0; }"
    for line in ("add table inet quiet", chain):
        desk.run(["nft", line])
    desk.run(["nft", "add rule inet quiet output tcp flags & rst == rst drop"])
    return desk


def cut(packet: bytes) -> list[bytes]:
    """In fragments, the last one first."""
    if packet[0] >> 4 == 6:
        return split(packet, MTU, 77)[::-1]
    body, pieces = packet[V4_HEADER:], []
    for at in range(0, len(body), 560):
        more = 0x2000 if at + 560 < len(body) else 0
        piece = body[at : at + 560]
        size = (V4_HEADER + len(piece)).to_bytes(2, "big")
        head = packet[:2] + size + b"\0\7" + struct.pack("!H", at // 8 | more) + packet[8:10]
        check = checksum(head + b"\0\0" + packet[12:V4_HEADER])
        pieces.append(head + check.to_bytes(2, "big") + packet[12:V4_HEADER] + piece)
    return pieces[::-1]


class Talk:
    """A connection of which we write each packet; ``into`` hears all of the client's TCP."""

    def __init__(self, machine: Machine, own: str, remote: str, port: int) -> None:
        self._ends = [ip_address(end).packed for end in (own, remote)]
        self._to, self._port = (remote, 0), port
        family = socket.AF_INET6 if ":" in own else socket.AF_INET
        self._out = within(machine, partial(raw, family, socket.IPPROTO_RAW))
        self._into = within(machine, partial(raw, family, TCP))
        self._into.settimeout(20)
        self._next, self._heard = 1000, 0

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()
        self._into.close()

    def open(self) -> None:
        """Its first packet has data, which nobody takes, for it to need fragments."""
        self._send(SYN, LONG, in_fragments=True)
        header, _ = self._segment()
        assert header.flags & (SYN | ACK) == SYN | ACK
        self._next, self._heard = self._next + 1, header.sequence + 1
        self._send(ACK)

    def echoed(self, data: bytes, *, in_fragments: bool = False) -> bool:
        """Say it, and hear all of it."""
        self._send(ACK, data, in_fragments=in_fragments)
        self._next += len(data)
        said = b""
        while len(said) < len(data):
            header, part = self._segment()
            known = self._heard - header.sequence  # what was slow to be acknowledged comes again
            if 0 <= known < len(part):
                said += part[known:]
                self._heard += len(part) - known
                self._send(ACK)
        return said == data

    def _send(self, flags: int, data: bytes = b"", *, in_fragments: bool = False) -> None:
        ports = (self._port, serve.ECHO_PORT)
        head = (*ports, self._next, self._heard, 5 << 4, flags, 65535, 0, 0)
        bare = struct.pack("!HHIIBBHHH", *head) + data
        check = transport_checksum(*self._ends, TCP, bare).to_bytes(2, "big")
        packet = ip_packet(*self._ends, TCP, bare[:16] + check + bare[18:])
        for piece in cut(packet) if in_fragments else [packet]:
            self._out.sendto(piece, self._to)

    def _segment(self) -> tuple[TcpHeader, bytes]:
        while True:
            data = self._into.recv(1 << 16)
            if len(self._ends[0]) == 16:
                # Without its header (raw(7) of IPv6).
                data = ip_packet(*self._ends, TCP, data)
            ip = read_ip(data)
            assert not isinstance(ip, Malformed)
            header = read_tcp(data, ip)
            assert not isinstance(header, Malformed)
            if (header.source, header.destination) == (serve.ECHO_PORT, self._port):
                return header, data[ip.transport + header.size : ip.end]


def raw(family: int, protocol: int) -> socket.socket:
    """What it sends has its IP header in front."""
    return socket.socket(family, socket.SOCK_RAW, protocol)


def test_a_connection(
    module_lab: Lab, client: Machine, gateway: GatewayProcess, family: Family
) -> None:
    """From its first packet on, and among whole ones."""
    before = gateway.counters()
    for port in PORTS:
        with Talk(client, address(client, family), target(module_lab, family), port) as talk:
            talk.open()
            assert talk.echoed(HELLO)
            assert talk.echoed(LONG, in_fragments=True)
    after = gateway.counters()
    assert after["tun_tcp_flows"] - before.get("tun_tcp_flows", 0) == len(PORTS)
    assert after.get("tun_dropped_fragment", 0) == 0
