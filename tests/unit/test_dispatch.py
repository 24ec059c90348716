"""The pipeline: accepted, decided, connected, relayed, recorded; and every way it may end."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network

import pytest

from gateway.breaker import WINDOW, WITHIN_S
from gateway.config.schema import Timeouts
from gateway.control.running import FlowState
from gateway.dispatch import Dispatcher, Flow
from gateway.errors import UpstreamFailure
from gateway.facts import FactFinder
from gateway.flow import CloseReason, Endpoint, FlowFacts, Protocol
from gateway.kernel.sockets import (
    SocketFactory,
    SocketOptions,
    accept,
    endpoint,
    local_endpoint,
    open_listener,
)
from gateway.outbound.base import FIRST_BYTES
from gateway.outbound.direct import DirectOutbound
from gateway.outbound.reject import RejectOutbound
from gateway.outbound.socks5 import Socks5Outbound
from gateway.policy.engine import Needs, Policy
from gateway.policy.rule import CompiledRule
from gateway.relay.tcp import Mover
from gateway.routing import OwnTraffic, Routing
from gateway.sniffing import SniffLimits
from gateway.trial import HELD_S, MOST_HELD
from gateway.wire.socks5 import encode_request

GRANTED = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
TIMEOUTS = Timeouts(connect=10, idle=1000, half_closed=100)
NOBODY = OwnTraffic()
#: A destination that only the SOCKS server is ever asked for.
FAR_AWAY = Endpoint("203.0.113.7", 443)

POLICY = Policy(
    [
        CompiledRule(
            0, "rules[0] -> reject", "reject", destination=(ip_network("198.51.100.0/24"),)
        ),
        CompiledRule(1, "rules[1] -> direct", "direct", destination=(ip_network("127.0.0.0/8"),)),
        CompiledRule(2, "rules[2] -> eager", "eager", destination=(ip_network("192.0.2.0/24"),)),
        CompiledRule(3, "rules[3] -> home", "home"),
    ]
)


class Rig:
    """A dispatcher whose ``home`` is a SOCKS server that the test plays."""

    def __init__(self, plane, timeouts: Timeouts, own: OwnTraffic, **settings: object) -> None:
        self.plane = plane
        self.socks, where = plane.server()
        factory = SocketFactory(None)
        factory.opened.wanted = own.diverted
        self.opened = factory.opened
        reactor = plane.reactor
        self.closed: list[Flow] = []
        self.mover = Mover(reactor)
        self.routing = Routing(
            POLICY,
            {
                "direct": DirectOutbound("direct", reactor, factory, SocketOptions()),
                "reject": RejectOutbound("reject"),
                "home": Socks5Outbound("home", reactor, factory, where, SocketOptions()),
                "eager": Socks5Outbound(
                    "eager", reactor, factory, where, SocketOptions(), None, "pipelined"
                ),
            },
            timeouts,
            SniffLimits(timeout=20),
            FactFinder(),
        )
        self.dispatcher = Dispatcher(
            self.mover, self.routing, own, self.opened, self.closed.append, **settings
        )
        self._listener = plane.own(open_listener("127.0.0.1", 0, transparent=False))
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Stands for a timer, which the test has elapse."""
        self.timers.append((seconds, call))

    def elapse(self) -> None:
        """Call what waits now."""
        waiting, self.timers = self.timers, []
        for _, call in waiting:
            call()

    def flow(self, destination: Endpoint = FAR_AWAY) -> socket.socket:
        """A client whose flow to ``destination`` was diverted to us."""
        client = self.plane.dial(local_endpoint(self._listener))
        self.accepted(destination)
        return client

    def accepted(self, destination: Endpoint) -> None:
        """Hand the connection that waits at the listener to the dispatcher."""
        sock, source = accept(self.plane.ready(self._listener))
        self.dispatcher.accepted(self.plane.own(sock), source, destination)

    async def relayed(self) -> tuple[socket.socket, socket.socket]:
        """A flow that is being relayed: the client's end, and the server's."""
        client = self.flow()
        far = await self.plane.accept(self.socks)
        await self.grant(far)
        await self.plane.until(
            lambda: any(flow.record().state is FlowState.RELAYING for flow in self.dispatcher.live)
        )
        return client, far

    async def grant(self, far: socket.socket) -> None:
        assert await self.plane.read(far, 3) == b"\x05\x01\x00"
        far.send(b"\x05\x00")
        assert (await self.plane.read(far, 10))[3:8] == b"\x01\xcb\x00\x71\x07"
        far.send(GRANTED)

    async def end(self) -> Flow:
        """Wait until the one flow has closed."""
        await self.plane.until(lambda: self.closed)
        (flow,) = self.closed
        assert list(self.dispatcher.recent) == [flow]
        assert not list(self.dispatcher.live)
        assert not len(self.opened)
        assert self.dispatcher.counters[f"closed_{flow.reason}"] == 1
        return flow


@pytest.fixture
def rig(plane):
    made: list[Rig] = []

    def make(own: OwnTraffic = NOBODY, timeouts: Timeouts = TIMEOUTS, **settings) -> Rig:
        made.append(Rig(plane, timeouts, own, **settings))
        return made[-1]

    yield make
    for each in made:
        each.dispatcher.close_all()
        assert not list(each.dispatcher.live)
        assert each.mover.pipes.lent == 0
        each.mover.pipes.close()


async def is_reset(plane, sock: socket.socket) -> bool:
    try:
        return await plane.loop.sock_recv(sock, 1) == b"never"
    except ConnectionResetError:
        return True


def test_through_socks(plane, rig):
    one = rig()

    async def scenario():
        client = one.flow()
        (live,) = one.dispatcher.live
        assert live.record().state is FlowState.CONNECTING
        client.send(b"early")
        far = await plane.accept(one.socks)
        await one.grant(far)
        assert await plane.read(far, 5) == b"early"
        far.send(b"an answer")
        assert await plane.read(client, 9) == b"an answer"
        record = live.record()
        assert record.state is FlowState.RELAYING
        assert (record.bytes_up, record.bytes_down) == (5, 9)
        client.shutdown(socket.SHUT_WR)
        assert await plane.read_to_end(far) == b""
        far.close()
        assert await plane.read_to_end(client) == b""
        flow = await one.end()
        assert flow is live
        return client, flow.record()

    client, record = plane.run(scenario())
    assert record.state is FlowState.CLOSED
    assert record.close_reason is CloseReason.DONE
    assert (record.bytes_up, record.bytes_down) == (5, 9)
    assert (record.client, record.destination) == (endpoint(client.getsockname()), FAR_AWAY)
    assert (record.rule, record.outbound) == ("rules[3] -> home", "home")
    assert abs(record.started - time.time()) < 60
    assert 0 <= record.duration_s < 60
    later = one.closed[0].record()
    assert record.duration_s == later.duration_s, "the duration of a closed flow stands still"
    assert abs(record.started - later.started) < 60
    assert one.dispatcher.counters == {
        "flows_accepted": 1,
        "closed_done": 1,
        "bytes_up": 5,
        "bytes_down": 9,
    }


def test_direct(plane, rig):
    one = rig()
    server, where = plane.server()

    async def scenario():
        client = one.flow(where)
        far = await plane.accept(server)
        far.send(b"a banner")
        assert await plane.read(client, 8) == b"a banner"
        far.close()
        client.close()
        flow = await one.end()
        assert flow.record().outbound == "direct"
        assert flow.reason is CloseReason.DONE

    plane.run(scenario())


@pytest.mark.parametrize(
    ("destination", "reason"),
    [
        (Endpoint("198.51.100.9", 80), CloseReason.REJECTED),
        (Endpoint("127.255.255.255", 9), CloseReason.UPSTREAM_UNREACHABLE),
    ],
)
def test_what_fails_at_once_resets_the_client(plane, rig, destination, reason):
    one = rig()
    client = one.flow(destination)

    async def scenario():
        flow = await one.end()
        assert flow.reason is reason
        assert flow.record().close_reason is reason
        assert await is_reset(plane, client)

    plane.run(scenario())


def test_refused_by_the_destination(plane, rig):
    one = rig()
    client = one.flow(plane.closed_port())

    async def scenario():
        flow = await one.end()
        assert flow.reason is CloseReason.UPSTREAM_REFUSED
        assert flow.detail == "Connection refused"
        assert await is_reset(plane, client)

    plane.run(scenario())


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (2, CloseReason.UPSTREAM_DENIED),
        (4, CloseReason.UPSTREAM_UNREACHABLE),
        (5, CloseReason.UPSTREAM_REFUSED),
        (6, CloseReason.CONNECT_TIMEOUT),
        (7, CloseReason.UPSTREAM_PROTOCOL),
        (None, CloseReason.UPSTREAM_RESET),
    ],
)
def test_refused_by_the_upstream(plane, rig, reply, reason):
    one = rig()

    async def scenario():
        client = one.flow()
        far = await plane.accept(one.socks)
        await plane.read(far, 3)
        far.send(b"\x05\x00")
        await plane.read(far, 10)
        far.close() if reply is None else far.send(bytes((5, reply)))
        assert (await one.end()).reason is reason
        assert await is_reset(plane, client)

    plane.run(scenario())


def test_every_failure_has_a_close_reason():
    from gateway.routing import REASONS

    assert set(REASONS) == set(UpstreamFailure)


def test_without_descriptors_the_flow_ends_and_is_counted(plane, rig, descriptors):
    one = rig()
    client = plane.dial(local_endpoint(one._listener))
    descriptors(1)
    one.accepted(FAR_AWAY)
    (flow,) = one.closed
    assert flow.reason is CloseReason.NO_RESOURCES
    assert plane.run(is_reset(plane, client))


@pytest.mark.parametrize("stage", ["connecting", "handshake"])
def test_a_client_that_resets_cancels_the_attempt(plane, rig, stage):
    one = rig()

    async def scenario():
        client = one.flow()
        far = await plane.accept(one.socks)
        if stage == "handshake":
            await plane.read(far, 3)
            far.send(b"\x05\x00")
            await plane.read(far, 10)
        plane.reset(client)
        assert (await one.end()).reason is CloseReason.CLIENT_RESET
        assert await plane.read_to_end(far) in {b"", b"\x05\x01\x00"}

    plane.run(scenario())


def test_a_client_that_half_closes_early_is_served(plane, rig):
    one = rig()

    async def scenario():
        client = one.flow()
        client.send(b"all I ask")
        client.shutdown(socket.SHUT_WR)
        far = await plane.accept(one.socks)
        await plane.turns()
        await one.grant(far)
        assert await plane.read_to_end(far) == b"all I ask"
        far.send(b"answered")
        far.close()
        assert await plane.read_to_end(client) == b"answered"
        assert (await one.end()).reason is CloseReason.DONE

    plane.run(scenario())


def test_what_a_client_sends_early_is_read_to_its_end(plane, rig):
    """The edges of these bytes are seen by the flow, before there is a relay."""
    one = rig()

    async def scenario():
        client = one.flow()
        await plane.turns()
        client.send(b"stop!", socket.MSG_OOB)
        client.send(b" and go on")
        far = await plane.accept(one.socks)
        await plane.turns()
        await one.grant(far)
        assert await plane.read(far, 15) == b"stop! and go on"
        client.send(b", please")
        client.shutdown(socket.SHUT_WR)
        assert await plane.read_to_end(far) == b", please"

    plane.run(scenario())


# --- the client's first bytes go with the handshake ----------------------------------------------

EAGER = Endpoint("192.0.2.9", 443)
OPENING = b"\x05\x01\x00" + encode_request(EAGER)
WELCOME = b"\x05\x00" + GRANTED


@pytest.mark.parametrize("size", [1, 5000, FIRST_BYTES, FIRST_BYTES + 1, 200_000])
@pytest.mark.parametrize("ended", [False, True], ids=["goes on", "ended"])
def test_first_bytes_go_right_behind_the_request(plane, rig, size, ended):
    one = rig()
    early, late = os.urandom(size), b"" if ended else b"and more"

    async def scenario():
        client = one.flow(EAGER)
        at_once = client.send(early)  # before the connection onward is there
        sending = plane.loop.create_task(plane.loop.sock_sendall(client, early[at_once:]))
        far = await plane.accept(one.socks)
        behind = min(size, FIRST_BYTES)
        received = await plane.read(far, len(OPENING) + behind)
        assert received == OPENING + early[:behind]
        (flow,) = one.dispatcher.live
        assert flow.record().state is FlowState.CONNECTING
        assert flow.record().bytes_up == 0
        far.send(WELCOME)
        rest = await plane.read(far, size - behind)
        await sending
        assert rest == early[behind:]
        client.send(late)
        client.shutdown(socket.SHUT_WR)
        assert await plane.read_to_end(far) == late
        far.send(b"answered")
        far.close()
        assert await plane.read_to_end(client) == b"answered"
        assert (await one.end()).bytes_up == size + len(late)

    plane.run(scenario())


def test_a_client_that_ended_before_is_served_to_its_end(plane, rig):
    one = rig()

    async def scenario():
        client = one.flow(EAGER)
        client.send(b"all I ask")
        client.shutdown(socket.SHUT_WR)
        far = await plane.accept(one.socks)
        assert await plane.read(far, len(OPENING) + 9) == OPENING + b"all I ask"
        far.send(WELCOME)
        assert await plane.read_to_end(far) == b""
        far.close()
        flow = await one.end()
        assert (flow.reason, flow.bytes_up) == (CloseReason.DONE, 9)

    plane.run(scenario())


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_client_that_has_said_nothing_yet_is_not_waited_for(plane, rig, first):
    one = rig()

    async def scenario():
        client = one.flow(EAGER)
        far = await plane.accept(one.socks)
        assert await plane.read(far, len(OPENING)) == OPENING
        await plane.turns()
        if first == "client":
            client.send(b"hello")
        far.send(WELCOME + b"220 ")
        assert await plane.read(client, 4) == b"220 "
        if first == "server":
            client.send(b"hello")
        assert await plane.read(far, 5) == b"hello"

    plane.run(scenario())


def test_a_client_that_resets_behind_its_first_bytes_ends_its_flow(plane, rig):
    one = rig()

    async def scenario():
        client = one.flow(EAGER)
        client.send(b"never mind")
        far = await plane.accept(one.socks)
        await plane.read(far, len(OPENING) + 10)
        far.send(WELCOME)
        plane.reset(client)
        assert (await one.end()).reason is CloseReason.CLIENT_RESET
        assert await is_reset(plane, far)

    plane.run(scenario())


def test_first_bytes_that_are_urgent_are_part_of_the_stream(plane, rig):
    one = rig()

    async def scenario():
        client = one.flow(EAGER)
        client.send(b"stop!", socket.MSG_OOB)
        client.send(b" and go on")
        far = await plane.accept(one.socks)
        await plane.read(far, len(OPENING))
        await plane.turns()
        far.send(WELCOME)
        assert await plane.read(far, 15) == b"stop! and go on"

    plane.run(scenario())


# --- time-outs: the clock is an argument, so no test waits for one -------------------------------


def test_connect_timeout(plane, rig):
    one = rig()

    async def scenario():
        client = one.flow()
        far = await plane.accept(one.socks)
        await plane.read(far, 3)
        (flow,) = one.dispatcher.live
        start = flow.quiet_since
        one.dispatcher.expire_connects(start + 9)
        one.dispatcher.expire_idle(start + 9999)
        assert not one.closed, "not yet, and not for being idle"
        one.dispatcher.expire_connects(start + 11)
        flow = await one.end()
        assert flow.reason is CloseReason.CONNECT_TIMEOUT
        assert flow.detail == "the upstream did not answer in time"
        assert await is_reset(plane, client)
        assert await plane.read_to_end(far) == b""

    plane.run(scenario())


def test_only_the_overdue_connects_expire(plane, rig):
    one = rig()

    async def scenario():
        one.flow()
        (first,) = one.dispatcher.live
        one.flow()
        (_, second) = one.dispatcher.live
        second.quiet_since = first.quiet_since + 5
        one.dispatcher.expire_connects(first.quiet_since + 11)
        assert one.closed == [first]
        assert list(one.dispatcher.live) == [second]

    plane.run(scenario())


def test_idle_timeout(plane, rig):
    one = rig()

    async def scenario():
        client, far = await one.relayed()
        (flow,) = one.dispatcher.live
        start = flow.quiet_since
        one.dispatcher.expire_connects(start + 9999)
        one.dispatcher.expire_idle(start + 999)
        assert not one.closed
        client.send(b"x")
        await plane.read(far, 1)
        one.dispatcher.expire_idle(start + 1001)
        assert not one.closed, "a byte moved since"
        one.dispatcher.expire_idle(start + 2000)
        assert not one.closed
        one.dispatcher.expire_idle(start + 2002)
        assert (await one.end()).reason is CloseReason.IDLE_TIMEOUT
        assert await is_reset(plane, client)
        assert await is_reset(plane, far)

    plane.run(scenario())


def test_half_closed_timeout(plane, rig):
    one = rig()

    async def scenario():
        client, far = await one.relayed()
        (flow,) = one.dispatcher.live
        late = flow.quiet_since + 500
        one.dispatcher.expire_idle(late)
        client.shutdown(socket.SHUT_WR)
        assert await plane.read_to_end(far) == b""
        one.dispatcher.expire_idle(late + 1)
        assert not one.closed, "the wait counts from the half-close, not from the last byte"
        one.dispatcher.expire_idle(late + 100)
        assert not one.closed
        one.dispatcher.expire_idle(late + 102)  # a hundred, and what floats make of it
        assert (await one.end()).reason is CloseReason.IDLE_TIMEOUT

    plane.run(scenario())


def test_a_slow_connect_does_not_count_as_idle(plane, rig):
    one = rig(timeouts=Timeouts(connect=2000, idle=500, half_closed=500))

    async def scenario():
        one.flow()
        (flow,) = one.dispatcher.live
        flow.started -= 1000
        flow.quiet_since -= 1000
        await one.grant(await plane.accept(one.socks))
        await plane.until(lambda: flow.record().state is FlowState.RELAYING)
        one.dispatcher.expire_idle(time.monotonic())
        assert not one.closed

    plane.run(scenario())


# --- loops -------------------------------------------------------------------------------------


def test_a_flow_of_our_own_is_a_loop_where_we_divert_none(plane, rig):
    one = rig(OwnTraffic(frozenset({"127.0.0.1"})))
    client = one.flow()

    async def scenario():
        flow = await one.end()
        assert flow.reason is CloseReason.LOOP
        assert flow.detail
        assert await is_reset(plane, client)
        with pytest.raises(BlockingIOError):
            one.socks.accept()

    plane.run(scenario())


def test_own_programs_are_served_where_we_divert_them(plane, rig):
    one = rig(OwnTraffic(frozenset({"127.0.0.1"}), diverted=True))

    async def scenario():
        client, far = await one.relayed()
        client.close()
        far.close()
        assert (await one.end()).reason is CloseReason.DONE

    plane.run(scenario())


@pytest.mark.parametrize("caught", [True, False])
def test_an_outbounds_own_leg_is_a_loop(plane, rig, caught):
    """A flow that comes from the port of an outbound's leg, and goes where that leg goes."""
    one = rig(OwnTraffic(frozenset({"127.0.0.1"}), diverted=True))

    async def scenario():
        one.flow()
        leg = await plane.accept(one.socks)
        upstream = endpoint(leg.getsockname())
        if not caught:
            upstream = upstream._replace(port=upstream.port ^ 1)
        client = plane.own(socket.socket())
        listener = plane.own(open_listener("127.0.0.1", 0, transparent=False))
        client.connect_ex(local_endpoint(listener))
        one.dispatcher.accepted(
            plane.own(accept(plane.ready(listener))[0]), endpoint(leg.getpeername()), upstream
        )
        if caught:
            (flow,) = one.closed
            assert flow.reason is CloseReason.LOOP
            assert await is_reset(plane, client)
            assert len(one.opened) == 1, "the leg itself goes on"
        else:
            assert not one.closed, "another program's flow, by chance from the same port"

    plane.run(scenario())


LOOKUPS = {"proxy.example": frozenset({"home"})}


def question(name: str) -> bytes:
    """A DNS query over TCP (RFC 1035 section 4.2.2)."""
    labels = b"".join(bytes([len(each)]) + each.encode() for each in name.split("."))
    query = b"\0\7\1\0\0\1" + bytes(6) + labels + b"\0\0\1\0\1"
    return len(query).to_bytes(2, "big") + query


@pytest.mark.parametrize(
    ("source", "port", "name", "caught"),
    [
        ("127.0.0.1", 53, "Proxy.example", True),
        ("127.0.0.1", 53, "other.example", False),
        ("127.0.0.1", 853, "proxy.example", False),
        ("192.0.2.1", 53, "proxy.example", False),
    ],
)
def test_a_name_that_is_asked_for_by_the_server_it_names(plane, rig, source, port, name, caught):
    """Over TCP, too; whoever else asks, or for whatever else, goes on with what was said."""
    one = rig(OwnTraffic(frozenset({source}), diverted=True, lookups=LOOKUPS))
    client = one.flow(FAR_AWAY._replace(port=port))
    query = question(name)

    async def scenario():
        client.send(query[:2])  # as some programs do
        await plane.turns()
        client.send(query[2:])
        if caught:
            flow = await one.end()
            assert flow.reason is CloseReason.LOOP
            assert "{destination: 203.0.113.7, port: 53, to: direct}" in flow.detail
            assert flow.record().outbound == "home"
            assert await is_reset(plane, client)
            return
        far = await plane.accept(one.socks)
        assert await plane.read(far, 3) == b"\x05\x01\x00"
        far.send(b"\x05\x00")
        await plane.read(far, 10)
        far.send(GRANTED)
        assert await plane.read(far, len(query)) == query

    plane.run(scenario())


async def unanswered(one: Rig) -> None:
    """A client opens so many flows that with another one they look like a loop."""
    for count in range(1, WINDOW):
        one.flow()
        await one.grant(await one.plane.accept(one.socks))
        await one.plane.until(lambda count=count: relaying(one) == count)


async def held_back(one: Rig) -> None:
    """And this one has to wait, until the test has the timers elapse."""
    await unanswered(one)
    for flow in one.dispatcher.live:
        flow.started = time.monotonic()
    one.dispatcher._trials._call_later = one.later
    one.flow()
    assert [seconds >= HELD_S for seconds, _ in one.timers] == [True]
    await one.plane.turns()
    with pytest.raises(BlockingIOError):
        one.socks.accept()


def relaying(one: Rig) -> int:
    return sum(flow.record().state is FlowState.RELAYING for flow in one.dispatcher.live)


def test_what_comes_back_as_soon_as_it_is_let_go_goes_round(plane, rig):
    """To end the newest flow is enough: the proxy of a loop then ends the others one by one."""
    one = rig()

    async def scenario():
        await held_back(one)
        one.elapse()
        await one.grant(await plane.accept(one.socks))
        assert not one.closed
        client = one.flow()
        (flow,) = one.closed
        assert flow.reason is CloseReason.LOOP
        assert "{source: 127.0.0.1, to: direct}" in flow.detail
        assert await is_reset(plane, client)

    plane.run(scenario())


def test_a_client_that_opens_many_and_says_nothing_loses_none(plane, rig):
    """As programs do that keep connections ready."""
    one = rig()

    async def scenario():
        await held_back(one)
        for _ in range(MOST_HELD):
            one.flow()
        for _ in range(MOST_HELD + 1):
            await one.grant(await plane.accept(one.socks))
        await plane.until(lambda: relaying(one) == WINDOW + MOST_HELD)
        assert not one.closed

    plane.run(scenario())


def test_a_flow_that_ends_while_it_is_held_back_is_left(plane, rig):
    one = rig()

    async def scenario():
        await held_back(one)
        *_, newest = one.dispatcher.live
        newest.close(CloseReason.CLIENT_RESET)
        one.elapse()
        await plane.turns()
        assert [flow.reason for flow in one.closed] == [CloseReason.CLIENT_RESET]
        with pytest.raises(BlockingIOError):
            one.socks.accept()

    plane.run(scenario())


def test_a_way_that_a_reload_took_while_a_flow_was_held_back(plane, rig):
    one = rig()

    async def scenario():
        await unanswered(one)
        one.flow()
        one.dispatcher.routing = replace(one.routing, outbounds={})
        await plane.until(lambda: one.closed)
        assert [flow.reason for flow in one.closed] == [CloseReason.REJECTED]

    plane.run(scenario())


def test_what_took_long_to_look_like_a_loop_is_not_held_back_as_long(plane, rig):
    """Its newest flow is ended at once."""
    one = rig()

    async def scenario():
        await unanswered(one)
        for flow in one.dispatcher.live:
            flow.started -= WITHIN_S + 1
        client = one.flow()
        assert [flow.reason for flow in one.closed] == [CloseReason.LOOP]
        assert await is_reset(plane, client)
        assert relaying(one) == WINDOW - 1

    plane.run(scenario())


def test_the_detector_can_be_left_out_for_the_lab(plane, rig):
    one = rig(OwnTraffic(frozenset({"127.0.0.1"})), detect_loops=False)

    async def scenario():
        await one.relayed()

    plane.run(scenario())


# --- the whole ---------------------------------------------------------------------------------


def test_close_all(plane, rig):
    one = rig()

    async def scenario():
        relayed_client, relayed_far = await one.relayed()
        connecting = one.flow()
        await plane.turns()
        one.dispatcher.close_all()
        assert [flow.reason for flow in one.closed] == [CloseReason.SHUTDOWN] * 2
        assert not list(one.dispatcher.live)
        for sock in (relayed_client, relayed_far, connecting):
            assert await is_reset(plane, sock)
        one.dispatcher.close_all()
        assert len(one.closed) == 2

    plane.run(scenario())


def test_a_reload_leaves_established_flows_alone(plane, rig):
    one = rig()

    async def scenario():
        client, far = await one.relayed()
        one.dispatcher.routing = Routing(
            Policy([CompiledRule(0, "rules[0] -> reject", "reject")]),
            {"reject": RejectOutbound("reject")},
            Timeouts(),
            SniffLimits(),
            FactFinder(),
        )
        one.flow()
        assert [flow.reason for flow in one.closed] == [CloseReason.REJECTED]
        client.send(b"still here")
        assert await plane.read(far, 10) == b"still here"

    plane.run(scenario())


def test_a_fake_address_goes_nowhere_without_a_name(plane, rig):
    one = rig()
    one.dispatcher.routing = replace(one.routing, fakes=(ip_network(f"{FAR_AWAY.host}/32"),))
    one.flow()
    assert [flow.reason for flow in one.closed] == [CloseReason.FAKE_ADDRESS]
    assert one.dispatcher.counters["closed_fake-address"] == 1
    routing = one.dispatcher.routing
    facts = FlowFacts(Protocol.TCP, Endpoint("10.0.0.9", 40_000), FAR_AWAY, name="a.example")
    asks = replace(routing.outbounds["home"], by_name=True)
    assert routing.is_nameless(facts, "home"), "this one asks for no names"
    assert not replace(routing, outbounds={"home": asks}).is_nameless(facts, "home")
    other = facts._replace(destination=FAR_AWAY._replace(host="203.0.113.99"), name="")
    assert not routing.is_nameless(other, "home")


def test_the_interface_is_looked_up_where_a_rule_asks(plane, rig):
    one = rig()
    one.dispatcher.routing = Routing(
        Policy(
            [
                CompiledRule(0, "rules[0] -> reject", "reject", interfaces=("lo",)),
                CompiledRule(1, "rules[1] -> home", "home"),
            ]
        ),
        one.routing.outbounds,
        Timeouts(),
        SniffLimits(),
        FactFinder(Needs(interface=True)),
    )
    one.flow()
    (flow,) = one.closed
    assert (flow.reason, flow.facts.interface) == (CloseReason.REJECTED, "lo")


def test_refusals_of_the_listener_are_counted(rig):
    one = rig()
    one.dispatcher.refused("not-diverted", Endpoint("192.168.20.5", 40000))
    one.dispatcher.refused("no-resources", Endpoint("192.168.20.5", 40001))
    assert one.dispatcher.counters == {"refused_not-diverted": 1, "refused_no-resources": 1}


def test_a_log_that_fails_ends_no_other_flow(plane, rig, caplog):
    one = rig()
    take = one.closed.append

    def fail(flow: Flow) -> None:
        take(flow)
        raise RuntimeError("on purpose")

    one.dispatcher._on_closed = fail

    async def scenario():
        client, far = await one.relayed()
        dying = [one.flow() for _ in range(3)]
        await plane.turns()
        for sock in dying:
            plane.reset(sock)
        client.send(b"x")
        assert await plane.read(far, 1) == b"x"
        await plane.until(lambda: len(one.closed) == 3)
        await plane.turns()
        assert one.dispatcher.counters["closed_client-reset"] == 3, "once each"
        one.dispatcher._on_closed = take

    with caplog.at_level("CRITICAL"):
        plane.run(scenario())


def test_hundreds_of_flows_at_once(plane, rig):
    one = rig()
    count = 200

    async def serve(far: socket.socket) -> None:
        await one.grant(far)
        far.send(await plane.read_to_end(far))
        far.close()

    async def ask(number: int) -> None:
        client = one.flow()
        question = number.to_bytes(2, "big") * number
        await plane.loop.sock_sendall(client, question)
        client.shutdown(socket.SHUT_WR)
        assert await plane.read_to_end(client) == question

    async def scenario():
        asking = asyncio.gather(*map(ask, range(count)))
        serving = [
            plane.loop.create_task(serve(await plane.accept(one.socks))) for _ in range(count)
        ]
        await asyncio.gather(asking, *serving)
        await plane.until(lambda: len(one.closed) == count)
        assert one.dispatcher.counters["closed_done"] == count
        assert len({flow.id for flow in one.closed}) == count

    plane.run(scenario())
