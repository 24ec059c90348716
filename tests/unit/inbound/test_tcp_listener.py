"""The TCP listener: bursts, direct dials, and an accept loop that nothing stops."""

from __future__ import annotations

import os
import socket

import pytest

from gateway.errors import CapabilityError
from gateway.flow import Endpoint
from gateway.inbound.tcp import (
    BATCH,
    Diversion,
    TcpListener,
    open_listeners,
    require_free_port,
)
from gateway.kernel import limits
from gateway.kernel.sockets import endpoint, local_endpoint, open_listener


class Acceptor:
    """Takes flows, and keeps or closes them."""

    def __init__(self, plane) -> None:
        self._plane = plane
        self.flows: list[tuple[socket.socket, Endpoint, Endpoint]] = []
        self.refusals: list[tuple[str, Endpoint]] = []

    def accepted(self, client, source, destination):
        self.flows.append((self._plane.own(client), source, destination))

    def refused(self, reason, source):
        self.refusals.append((reason, source))


@pytest.fixture
def acceptor(plane):
    return Acceptor(plane)


@pytest.fixture
def listening(plane, acceptor):
    """A listener that takes all for diverted: its address is none that nobody could dial."""
    made = []

    def start(acceptor=acceptor) -> Endpoint:
        sock = open_listener("127.0.0.2", 0, transparent=False)
        made.append(TcpListener(plane.reactor, sock, Diversion("tproxy"), acceptor))
        return local_endpoint(sock)

    yield start
    for listener in made:
        listener.close()


async def is_reset(plane, sock: socket.socket) -> bool:
    try:
        return await plane.loop.sock_recv(sock, 1) == b"never"
    except ConnectionResetError:
        return True


def test_a_burst_larger_than_a_batch(plane, acceptor, listening):
    where = listening()
    clients = [plane.dial(where) for _ in range(3 * BATCH + 1)]

    async def scenario():
        await plane.until(lambda: len(acceptor.flows) == len(clients))

    plane.run(scenario())
    sources = {endpoint(client.getsockname()) for client in clients}
    assert {source for _, source, _ in acceptor.flows} == sources
    assert {destination for _, _, destination in acceptor.flows} == {where}


def test_a_batch_ends_the_turn(plane, acceptor, listening):
    """Established flows are served before the rest of a burst."""
    where = listening()

    async def scenario():
        for _ in range(3 * BATCH):
            plane.dial(where)
        while not acceptor.flows:
            await plane.turns(1)
        assert len(acceptor.flows) in (BATCH, 2 * BATCH), "a turn has two batches at most"
        await plane.until(lambda: len(acceptor.flows) == 3 * BATCH)

    plane.run(scenario())


def test_running_out_of_descriptors_refuses_and_goes_on(plane, acceptor, listening, descriptors):
    where = listening()
    early = [plane.dial(where) for _ in range(20)]
    later = [plane.own(socket.socket()) for _ in range(20)]
    descriptors(3)

    async def scenario():
        await plane.until(lambda: len(acceptor.refusals) == 17)
        assert len(acceptor.flows) == 3
        assert {reason for reason, _ in acceptor.refusals} == {"no-resources"}
        told = {source for _, source in acceptor.refusals}
        for client in early:
            if endpoint(client.getsockname()) in told:
                assert await is_reset(plane, client)

        for client in later[:5]:
            client.connect_ex(where)
        await plane.until(lambda: len(acceptor.refusals) == 22)
        assert len(acceptor.flows) == 3

        for sock, _, _ in acceptor.flows:
            plane.reactor.close(sock)
        for client in later[5:8]:
            client.connect_ex(where)
        await plane.until(lambda: len(acceptor.flows) == 6)

        for client in later[8:]:
            client.connect_ex(where)
        await plane.until(lambda: len(acceptor.refusals) == 34)
        assert len(acceptor.flows) == 6

    plane.run(scenario())


def test_flows_do_not_get_the_last_descriptors(plane, acceptor, listening, monkeypatch):
    where = listening()
    early = [plane.dial(where) for _ in range(5)]
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    monkeypatch.setattr(limits._FLOWS, "end", free + 2)

    async def scenario():
        await plane.until(lambda: len(acceptor.refusals) == 3)
        told = {source for _, source in acceptor.refusals}
        for client in early:
            if endpoint(client.getsockname()) in told:
                assert await is_reset(plane, client)

    plane.run(scenario())
    assert len(acceptor.flows) == 2
    assert {reason for reason, _ in acceptor.refusals} == {"no-resources"}


def test_an_exhausted_listener_that_nobody_dials_is_at_rest(
    plane, acceptor, listening, descriptors, monkeypatch
):
    """It must not turn the loop until a descriptor is free."""
    calls: list[int] = []
    on_ready = TcpListener.on_ready

    def counted(self: TcpListener, fd: int, events: int) -> None:
        calls.append(fd)
        on_ready(self, fd, events)

    monkeypatch.setattr(TcpListener, "on_ready", counted)
    where = listening()
    for _ in range(5):
        plane.dial(where)
    descriptors(0)

    async def scenario():
        await plane.until(lambda: len(acceptor.refusals) == 5)
        before = len(calls)
        await plane.turns(50)
        assert len(calls) == before

    plane.run(scenario())


def test_a_client_that_is_gone_already(plane, acceptor, listening):
    where = listening()
    gone = plane.dial(where)
    source = endpoint(gone.getsockname())
    plane.reset(gone)
    plane.dial(where)

    async def scenario():
        await plane.until(lambda: any(flow[1] != source for flow in acceptor.flows))

    plane.run(scenario())


def test_an_acceptor_that_fails_does_not_stop_the_listener(plane, acceptor, listening, caplog):
    class Failing(Acceptor):
        def accepted(self, client, source, destination):
            super().accepted(client, source, destination)
            if len(self.flows) == 1:
                raise RuntimeError("on purpose")

    failing = Failing(plane)
    where = listening(failing)
    for _ in range(3):
        plane.dial(where)

    async def scenario():
        await plane.until(lambda: len(failing.flows) == 3)

    with caplog.at_level("CRITICAL"):
        plane.run(scenario())


MODES = ["tproxy", "redirect"]


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_client_that_dials_the_listener_is_refused_and_counted(plane, acceptor, mode, host):
    listeners = open_listeners(plane.reactor, mode, free_port(), acceptor, ipv6=True)
    port = local_endpoint(listeners[0]._sock).port
    client = plane.dial(Endpoint(host, port))

    async def scenario():
        await plane.until(lambda: acceptor.refusals)
        assert acceptor.refusals == [("not-diverted", endpoint(client.getsockname()))]
        assert await is_reset(plane, client)
        assert not acceptor.flows

    plane.run(scenario())
    for listener in listeners:
        listener.close()
    assert plane.own(socket.socket()).connect_ex(("127.0.0.1", port)), "closed"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("ipv6", [True, False])
def test_one_listener_per_family(plane, acceptor, ipv6):
    listeners = open_listeners(plane.reactor, "redirect", free_port(), acceptor, ipv6=ipv6)
    assert len(listeners) == 1 + ipv6
    for listener in listeners:
        listener.close()


def test_where_one_listener_cannot_be_none_is_left(plane, acceptor):
    port = free_port()
    taken = plane.own(open_listener("::", port, transparent=False, shared=False))
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only numbers
    with pytest.raises(CapabilityError, match="the port is taken"):
        open_listeners(plane.reactor, "redirect", port, acceptor, ipv6=True)
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert taken.fileno() != -1


def test_a_port_that_another_gateway_shares_is_not_free(plane):
    port = free_port()
    plane.own(open_listener("::", port, transparent=False))
    with pytest.raises(CapabilityError, match="the port is taken"):
        require_free_port("redirect", port, ipv6=True)
    require_free_port("redirect", free_port(), ipv6=True)
