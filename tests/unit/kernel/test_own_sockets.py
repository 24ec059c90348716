"""The register of our own sockets."""

from __future__ import annotations

import socket

import pytest

from gateway.flow import Endpoint
from gateway.kernel.own_sockets import LEAST, OwnSockets
from gateway.kernel.sockets import SocketFactory, SocketOptions, endpoint
from gateway.kernel.udp_sockets import UdpSockets

FAR, ELSEWHERE = Endpoint("192.0.2.1", 53), Endpoint("192.0.2.2", 53)
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM


def test_sockets_are_known_by_both_ends_while_they_are_open():
    own, local = OwnSockets(), Endpoint("192.168.10.1", 40000)
    with socket.socket() as sock:
        own.note(sock, local, FAR)
        assert own.sent(STREAM, local, FAR)
        assert not own.sent(STREAM, local, ELSEWHERE)
        assert not own.sent(STREAM, local._replace(port=40001), FAR)
        assert not own.sent(DATAGRAM, local, FAR)
        assert len(own) == 1
    assert not own.sent(STREAM, local, FAR)
    assert len(own) == 0


@pytest.mark.parametrize(("host", "remote"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1")])
@pytest.mark.parametrize("connected", [True, False])
def test_datagram_sockets_send_to_one_or_to_anybody(host, remote, connected):
    factory, far = SocketFactory(None), Endpoint(remote, 9)
    factory.opened.wanted = True
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = UdpSockets(factory).open(family, SocketOptions(), far if connected else None)
    source = Endpoint(host, endpoint(sock.getsockname()).port)
    assert factory.opened.sent(DATAGRAM, source, far)
    assert factory.opened.sent(DATAGRAM, source, far._replace(port=10)) == (not connected)
    sock.close()
    assert not factory.opened.sent(DATAGRAM, source, far)


def test_nothing_is_noted_unless_it_is_wanted():
    factory = SocketFactory(None)
    sock = UdpSockets(factory).open(socket.AF_INET, SocketOptions(), Endpoint("127.0.0.1", 9))
    assert len(factory.opened) == 0
    sock.close()


def test_closed_ones_are_left_out_in_time():
    own = OwnSockets()
    with socket.socket() as sock:
        own.note(sock, Endpoint("192.0.2.9", 1), FAR)
        for number in range(3 * LEAST):
            with socket.socket() as passing:
                own.note(passing, Endpoint("192.0.2.8", number), FAR)
            assert len(own._socks) <= LEAST
        assert own.sent(STREAM, Endpoint("192.0.2.9", 1), FAR)
