from __future__ import annotations

import errno
import socket
from contextlib import closing
from pathlib import Path

import pytest

from gateway.flow import Endpoint
from gateway.kernel import netns
from gateway.kernel.sockets import SocketFactory, SocketOptions

from .namespace import Namespace

SO_NETNS_COOKIE = 71


def namespace_of(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)


def test_a_socket_belongs_to_the_namespace_that_it_was_made_in(ns: Namespace) -> None:
    there = ns.call(socket.socket)
    here = socket.socket()
    where = Endpoint("203.0.113.1", 9)
    made = SocketFactory(None).connect_tcp(where, SocketOptions(netns=ns.name))
    after = socket.socket()
    with there, here, closing(made), after:
        assert namespace_of(made) == namespace_of(there)
        assert namespace_of(after) == namespace_of(here) != namespace_of(there)
        assert made.getsockname()[0] == "203.0.113.2"


def test_an_error_inside_leads_home(ns: Namespace) -> None:
    home = Path("/proc/thread-self/ns/net").readlink()
    with pytest.raises(ZeroDivisionError), netns.entered(ns.name):
        raise ZeroDivisionError
    assert Path("/proc/thread-self/ns/net").readlink() == home


def test_a_namespace_that_is_not_there() -> None:
    with pytest.raises(OSError, match="network namespace gw-none: No such file") as caught:
        SocketFactory(None).connect_tcp(Endpoint("192.0.2.1", 9), SocketOptions(netns="gw-none"))
    assert caught.value.errno == errno.ENOENT
