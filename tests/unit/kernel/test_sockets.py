"""The socket factory and the listeners: what the kernel says of the sockets they open."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from gateway.errors import CapabilityError
from gateway.flow import Endpoint
from gateway.kernel.arrival import Arrival, arrival
from gateway.kernel.sockets import (
    IP_TRANSPARENT,
    IPV6_TRANSPARENT,
    SocketFactory,
    SocketOptions,
    accept,
    local_endpoint,
    nat_destination,
    open_listener,
    pending_error,
)
from gateway.kernel.udp_sockets import open_udp_listener
from gateway.marks import Marks

HOSTS = ["127.0.0.1", "::1"]


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def reached(plane):
    """A connection that the factory opened: our end, and the server's."""

    def open_(factory: SocketFactory, options: SocketOptions, host: str = "127.0.0.1"):
        server, where = plane.server(host)
        near = factory.connect_tcp(where, options)
        assert not os.get_blocking(near.fileno())
        plane.own(near)
        far = plane.run(plane.accept(server))
        assert pending_error(near) == 0
        return near, far

    return open_


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    "options", [SocketOptions(), SocketOptions(device="lo")], ids=["plain", "device"]
)
def test_every_socket_has_the_mark(reached, host, options):
    near, _ = reached(SocketFactory(Marks().bypass), options, host)
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == Marks().bypass.value


def test_without_a_mark_there_is_none(reached):
    """The lab's factory, which shows the loop."""
    near, _ = reached(SocketFactory(None), SocketOptions())
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0


@pytest.mark.parametrize("host", HOSTS)
def test_sockets_neither_delay_nor_lose_urgent_data(reached, host):
    near, _ = reached(SocketFactory(None), SocketOptions(), host)
    assert not os.get_inheritable(near.fileno())
    assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)


@pytest.mark.parametrize("host", HOSTS)
def test_bound_to_a_device(reached, host):
    near, _ = reached(SocketFactory(None), SocketOptions(device="lo"), host)
    name = near.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
    assert name.rstrip(b"\0") == b"lo"


@pytest.mark.parametrize(("host", "source"), [("127.0.0.1", "127.0.0.2"), ("::1", "::1")])
def test_bound_to_a_source(reached, host, source):
    _, far = reached(SocketFactory(None), SocketOptions(sources=(source,)), host)
    assert far.getpeername()[0] == source


@pytest.mark.usefixtures("root")
def test_a_transparent_source_need_not_be_ours(plane):
    """The answer would not find its way back here; that it may be sent is what we see."""
    _, where = plane.server()
    sock = plane.own(
        SocketFactory(None).connect_tcp(
            where, SocketOptions(sources=("192.0.2.7",), transparent=True)
        )
    )
    assert local_endpoint(sock).host == "192.0.2.7"
    assert sock.getsockopt(socket.IPPROTO_IP, IP_TRANSPARENT)


def test_flows_of_one_source_share_ports(plane):
    """Otherwise 28,000 flows, to wherever, would be all that one source address may have."""
    places = [plane.server()[1] for _ in range(2)]
    factory, options = SocketFactory(None), SocketOptions(sources=("127.0.0.3",))
    first = plane.own(factory.connect_tcp(places[0], options))
    again = plane.own(socket.socket())
    again.bind(("127.0.0.3", 0))
    assert local_endpoint(first).port != 0
    assert first.getsockopt(socket.IPPROTO_IP, 24), "IP_BIND_ADDRESS_NO_PORT"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (SocketOptions(device="gw-none0"), errno.ENODEV),
        (SocketOptions(sources=("192.0.2.7",)), errno.EADDRNOTAVAIL),
    ],
)
def test_what_the_kernel_refuses_at_once_leaves_no_socket(options, code):
    before = open_descriptors()
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what matters
        SocketFactory(None).connect_tcp(Endpoint("127.0.0.1", 9), options)
    assert caught.value.errno == code
    assert open_descriptors() == before


def test_each_leg_may_have_its_own_congestion_control(plane):
    """What is accepted inherits the listener's."""
    listener = plane.own(open_listener("127.0.0.1", 0, transparent=False, congestion="reno"))
    options = SocketOptions(congestion="reno")
    ours = plane.own(SocketFactory(None).connect_tcp(local_endpoint(listener), options))
    for sock in (ours, plane.own(accept(plane.ready(listener))[0])):
        name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        assert name.rstrip(b"\0") == b"reno"


def test_a_refusal_is_pending(plane):
    sock = plane.own(SocketFactory(None).connect_tcp(plane.closed_port(), SocketOptions()))
    assert pending_error(plane.ready(sock)) == errno.ECONNREFUSED


@pytest.mark.parametrize("host", HOSTS)
def test_accepted_sockets(plane, host):
    listener = plane.own(open_listener(host, 0, transparent=False))
    client = plane.dial(local_endpoint(listener))
    sock, source = accept(plane.ready(listener))
    assert not os.get_blocking(sock.fileno())
    plane.own(sock)
    assert source == Endpoint(*client.getsockname()[:2])
    assert local_endpoint(sock) == local_endpoint(listener)
    assert (sock.family, sock.type) == (listener.family, socket.SOCK_STREAM)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), "inherited"
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE), "inherited"
    assert arrival(sock) == Arrival(socket.if_nametoindex("lo"), 0)
    with pytest.raises(BlockingIOError):
        accept(listener)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("host", "level", "option"),
    [
        ("127.0.0.1", socket.IPPROTO_IP, IP_TRANSPARENT),
        ("::1", socket.IPPROTO_IPV6, IPV6_TRANSPARENT),
    ],
)
def test_transparent_listeners(plane, host, level, option):
    assert plane.own(open_listener(host, 0, transparent=True)).getsockopt(level, option)
    assert not plane.own(open_listener(host, 0, transparent=False)).getsockopt(level, option)


def test_both_families_listen_on_one_port(plane):
    port = local_endpoint(plane.own(open_listener("0.0.0.0", 0, transparent=False))).port
    plane.own(open_listener("::", port, transparent=False))


def test_a_taken_port_is_named_with_its_cure(plane):
    port = local_endpoint(
        plane.own(open_listener("127.0.0.1", 0, transparent=False, shared=False))
    ).port
    with pytest.raises(CapabilityError, match=f"127.0.0.1:{port}: the port is taken") as caught:
        open_listener("127.0.0.1", port, transparent=False, shared=False)
    assert f"sport = :{port}" in caught.value.hint
    assert "inbound.port" in caught.value.hint


def test_a_listener_for_which_no_descriptor_is_left(plane, descriptors):
    descriptors(0)
    for listen in (partial(open_listener, transparent=False), open_udp_listener):
        with pytest.raises(CapabilityError, match="7895: Too many open files") as caught:
            listen("127.0.0.1", 7895)
        assert "LimitNOFILE" in caught.value.hint


def test_an_address_that_is_not_ours_is_named():
    with pytest.raises(CapabilityError, match=r"192\.0\.2\.7:0: Cannot assign"):
        open_listener("192.0.2.7", 0, transparent=False)


@pytest.mark.usefixtures("root")
def test_a_missing_privilege_is_named_with_its_cure():
    script = (
        "import os; os.setuid(65534)\n"
        "from gateway.errors import CapabilityError\n"
        "from gateway.kernel.sockets import open_listener\n"
        "try: open_listener('127.0.0.1', 0, transparent=True)\n"
        "except CapabilityError as error: print(error, '|', error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        "cannot listen on 127.0.0.1:0: Operation not permitted |"
        " run as root, or with CAP_NET_ADMIN or CAP_NET_RAW\n"
    )


@pytest.mark.parametrize("host", HOSTS)
def test_a_flow_that_nat_does_not_know(plane, host):
    """An error, or the socket's own address: ``Diversion`` takes both for a direct dial."""
    listener = plane.own(open_listener(host, 0, transparent=False))
    plane.dial(local_endpoint(listener))
    sock = plane.own(accept(plane.ready(listener))[0])
    try:
        assert nat_destination(sock) == local_endpoint(sock)
    except OSError as error:
        assert error.errno in {errno.ENOENT, errno.ENOPROTOOPT}  # noqa: PT017


NAMESPACES = [f"gwf{os.getpid()}{side}" for side in "ab"]
LISTEN = """
import socket
from gateway.kernel.neighbours import ask_kernel
from gateway.kernel.sockets import accept, open_listener
from gateway.kernel.arrival import arrival, interface_name
listeners = [open_listener(host, 7000, transparent=False) for host in ("0.0.0.0", "::")]
print("ready", flush=True)
for listener in listeners:
    listener.setblocking(True)
    sock, source = accept(listener)
    index, dscp = arrival(sock)
    print(interface_name(index), dscp, ask_kernel(source.host, index), flush=True)
"""
DIAL = """
import socket
for host in ("10.91.0.1", "fd91::1"):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(10)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 46 << 2)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 34 << 2)
        sock.connect((host, 7000))
"""


@pytest.fixture
def wire() -> Iterator[tuple[str, str]]:
    """Two namespaces with a veth between them: ``gwf-in0`` in the first."""
    first, second = NAMESPACES
    setup = f"""
        netns add {first}
        netns add {second}
        -n {first} link add gwf-in0 type veth peer name out0 netns {second}
        -n {first} addr add 10.91.0.1/24 dev gwf-in0
        -n {first} addr add fd91::1/64 dev gwf-in0 nodad
        -n {first} link set gwf-in0 up
        -n {second} addr add 10.91.0.2/24 dev out0
        -n {second} addr add fd91::2/64 dev out0 nodad
        -n {second} link set out0 address 02:00:5e:00:53:02 up
    """
    try:
        for line in setup.strip().splitlines():
            subprocess.run(["ip", *line.split()], check=True)
        yield first, second
    finally:
        for name in NAMESPACES:
            subprocess.run(["ip", "netns", "del", name], check=False)


@pytest.mark.usefixtures("root")
def test_what_a_flow_arrived_with(wire):
    first, second = wire

    def python(name: str, script: str) -> list[str]:
        return ["ip", "netns", "exec", name, sys.executable, "-c", script]

    with subprocess.Popen(python(first, LISTEN), stdout=subprocess.PIPE, text=True) as listening:
        try:
            assert listening.stdout.readline() == "ready\n"
            subprocess.run(python(second, DIAL), check=True, timeout=20)
            mac = "02:00:5e:00:53:02"
            assert listening.stdout.read().splitlines() == [
                f"gwf-in0 46 {mac}",
                f"gwf-in0 34 {mac}",
            ]
        finally:
            listening.kill()
