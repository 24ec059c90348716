"""Flows that wait for their client's first bytes: what they learn, and that none waits too long."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import pytest

from gateway.control.running import FlowState
from gateway.dispatch import Dispatcher, Flow
from gateway.facts import FactFinder
from gateway.flow import CloseReason, Endpoint
from gateway.kernel.sockets import (
    SocketFactory,
    SocketOptions,
    accept,
    local_endpoint,
    open_listener,
)
from gateway.outbound.direct import DirectOutbound
from gateway.outbound.reject import RejectOutbound
from gateway.outbound.socks5 import Socks5Outbound
from gateway.policy.engine import CompiledRule, Policy
from gateway.policy.names import NamePatterns
from gateway.relay.tcp import Mover
from gateway.routing import FlowTimeouts, OwnTraffic, Routing
from gateway.sniffing import SniffLimits
from gateway.wire.socks5 import encode_address

REQUEST = b"GET / HTTP/1.1\r\nHost: www.video.example\r\nX: y\r\n\r\n"
#: Long enough that no test meets it that does not mean to.
PATIENT = SniffLimits(timeout=1000)
IMPATIENT = SniffLimits(timeout=0.01)
FAR_AWAY = Endpoint("203.0.113.7", 80)
GRANTED = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"

POLICY = Policy(
    [
        CompiledRule(index=0, text="blocked", outbound="reject",
                     names=NamePatterns.of(["+.blocked.example"])),
        CompiledRule(index=1, text="video", outbound="direct",
                     names=NamePatterns.of(["+.video.example"])),
        CompiledRule(index=2, text="ssh", outbound="direct", sniffed=("ssh",)),
        CompiledRule(index=3, text="rest", outbound="home"),
    ]
)  # fmt: skip
#: No rule asks for a name.
PLAIN = Policy(
    [
        CompiledRule(
            index=0,
            text="quiet",
            outbound="home",
            sniff=False,
            ports=((81, 81),),
            protocols=("tcp",),
        ),
        CompiledRule(index=1, text="rest", outbound="home"),
    ]
)


class Rig:
    """A dispatcher, a web server and a SOCKS server that the test plays."""

    def __init__(
        self, plane, limits: SniffLimits, policy: Policy = POLICY, *, by_name: bool = False
    ) -> None:
        self.plane = plane
        self.web, self.web_at = plane.server()
        self.socks, socks_at = plane.server()
        factory, reactor = SocketFactory(None), plane.reactor
        self.closed: list[Flow] = []
        self.mover = Mover(reactor)
        home = Socks5Outbound("home", reactor, factory, socks_at, SocketOptions(), by_name=by_name)
        outbounds = {
            "direct": DirectOutbound("direct", reactor, factory, SocketOptions()),
            "reject": RejectOutbound("reject"),
            "home": home,
        }
        routing = Routing(policy, outbounds, FlowTimeouts(10, 1000, 100), limits, FactFinder())
        self.dispatcher = Dispatcher(
            self.mover, routing, OwnTraffic(), factory.opened, self.closed.append
        )
        self._listener = plane.own(open_listener("127.0.0.1", 0, transparent=False))

    async def flow(self, *said: bytes, to: Endpoint | None = None) -> socket.socket:
        """A client that says this before it is accepted, on its way to the web server."""
        client = self.plane.dial(local_endpoint(self._listener))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in said:
            client.send(piece)
        sock, source = accept(self.plane.ready(self._listener))
        if said:
            self.plane.ready(sock)
        self.dispatcher.accepted(self.plane.own(sock), source, to or self.web_at)
        await self.plane.turns()
        return client

    @property
    def live(self) -> Flow:
        (flow,) = self.dispatcher.live
        assert self.dispatcher.live_count == 1
        return flow

    @property
    def waits(self) -> bool:
        return self.live.record().state is FlowState.SNIFFING

    def counted(self, name: str) -> int:
        return self.dispatcher.counters[name]


@pytest.fixture
def rig(plane):
    made: list[Rig] = []

    def make(*settings, **options) -> Rig:
        made.append(Rig(plane, *settings, **options))
        return made[-1]

    yield make
    for each in made:
        each.dispatcher.close_all()
        assert not list(each.dispatcher.live)
        assert not each.dispatcher.live_count
        each.mover.pipes.close()


def test_what_was_looked_at_travels_on_first(plane, rig):
    one = rig(PATIENT)

    async def scenario():
        client = await one.flow(REQUEST)
        far = await plane.accept(one.web)
        assert await plane.read(far, len(REQUEST)) == REQUEST
        client.send(b"more")
        assert await plane.read(far, 4) == b"more"
        far.send(b"an answer")
        assert await plane.read(client, 9) == b"an answer"
        record = one.live.record()
        assert (record.rule, record.outbound) == ("video", "direct")
        assert (record.name, record.sniffed) == ("www.video.example", "http")
        assert record.bytes_up == len(REQUEST) + 4

    plane.run(scenario())
    assert one.counted("sniffed_http") == 1


def test_a_byte_at_a_time(plane, rig):
    """The flow waits for the name's end, and no longer."""
    one = rig(PATIENT)
    end = REQUEST.index(b"\r\nX") + 2

    async def scenario():
        client = await one.flow()
        for at in range(end):
            assert one.waits, at
            record = one.live.record()
            assert (record.rule, record.outbound, record.name) == ("", "", "")
            client.send(REQUEST[at : at + 1])
            if at < end - 1:
                await plane.until(lambda so_far=at + 1: len(one.live.first_bytes()) == so_far)
                await plane.turns()
        await plane.until(lambda: not one.waits)
        far = await plane.accept(one.web)
        assert await plane.read(far, end) == REQUEST[:end]

    plane.run(scenario())


def test_another_name_another_way(plane, rig):
    one = rig(PATIENT)

    async def scenario():
        await one.flow(REQUEST.replace(b"video", b"other"))
        far = await plane.accept(one.socks)
        assert await plane.read(far, 3) == b"\x05\x01\x00"
        assert one.live.record().rule == "rest"

    plane.run(scenario())


def test_a_rule_may_ask_for_the_protocol_alone(plane, rig):
    one = rig(PATIENT)

    async def scenario():
        await one.flow(b"SSH-2.0-x\r\n")
        far = await plane.accept(one.web)
        assert await plane.read(far, 11) == b"SSH-2.0-x\r\n"
        assert one.live.record().sniffed == "ssh"

    plane.run(scenario())


def test_a_reject_is_a_reset(plane, rig):
    one = rig(PATIENT)

    async def scenario():
        client = await one.flow(REQUEST.replace(b"video", b"blocked"))
        with pytest.raises(ConnectionResetError):
            await plane.read(client, 1)

    plane.run(scenario())
    (flow,) = one.closed
    assert flow.reason is CloseReason.REJECTED
    assert flow.record().name == "www.blocked.example"


def test_a_silent_client_is_not_kept_waiting(plane, rig):
    """Its server may be the one to speak first."""
    one = rig(IMPATIENT)

    async def scenario():
        await one.flow()
        await plane.accept(one.socks)
        record = one.live.record()
        assert (record.rule, record.name, record.sniffed) == ("rest", "", "")

    plane.run(scenario())
    assert one.counted("sniff_timeout") == one.counted("sniffed_unknown") == 1


def test_what_is_known_in_time_counts(plane, rig):
    """A hello that does not come to its end."""
    one = rig(IMPATIENT)

    async def scenario():
        await one.flow(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        await plane.accept(one.socks)
        assert one.live.record().sniffed == "tls"

    plane.run(scenario())
    assert one.counted("sniff_timeout") == one.counted("sniffed_tls") == 1


def test_a_shorter_time_holds_beside_flows_that_may_wait_for_longer(plane, rig):
    one = rig(PATIENT)

    async def scenario():
        await one.flow()
        one.dispatcher.routing = replace(one.dispatcher.routing, sniff=IMPATIENT)
        await one.flow()
        await plane.accept(one.socks)

    plane.run(scenario())
    assert one.counted("sniff_timeout") == 1


def test_several_wait_and_each_has_its_own_time(plane, rig):
    one = rig(SniffLimits(timeout=0.02))

    async def scenario():
        for _ in range(3):
            await one.flow()
            await asyncio.sleep(0.008)
        for _ in range(3):
            await plane.accept(one.socks)

    plane.run(scenario())
    assert one.counted("sniff_timeout") == 3


def test_no_further_than_so_many_bytes(plane, rig):
    one = rig(SniffLimits(timeout=1000, size=64))

    async def scenario():
        client = await one.flow(b"GET / HTTP/1.1\r\nCookie: ")
        client.send(b"x" * 39)
        await plane.until(lambda: len(one.live.first_bytes()) == 63)
        await plane.turns()
        assert one.waits
        client.send(b"x")
        await plane.accept(one.socks)
        assert one.live.record().sniffed == "http"

    plane.run(scenario())
    assert not one.counted("sniff_timeout")


def test_a_client_that_ends_its_side_is_not_waited_for(plane, rig):
    one = rig(PATIENT)

    async def scenario():
        client = await one.flow(b"GET / HT")
        assert one.waits
        client.shutdown(socket.SHUT_WR)
        far = await plane.accept(one.socks)
        assert await plane.read(far, 3) == b"\x05\x01\x00"
        far.send(b"\x05\x00")
        await plane.read(far, 10)
        far.send(GRANTED)
        assert await plane.read_to_end(far) == b"GET / HT"

    plane.run(scenario())


def test_a_client_that_goes_away_while_it_is_waited_for(plane, rig):
    one = rig(PATIENT)

    async def scenario():
        client = await one.flow(b"GET")
        plane.reset(client)
        await plane.until(lambda: one.closed)

    plane.run(scenario())
    (flow,) = one.closed
    assert flow.reason is CloseReason.CLIENT_RESET
    assert flow.record().rule == ""


def test_the_end_of_the_gateway_ends_it(plane, rig):
    one = rig(PATIENT)

    async def scenario():
        client = await one.flow()
        one.dispatcher.close_all()
        with pytest.raises(ConnectionResetError):
            await plane.read(client, 1)

    plane.run(scenario())


@pytest.mark.parametrize(
    ("limits", "port", "looks"),
    [
        (PATIENT, 25, False),
        (PATIENT, 22, True),
        (PATIENT, 443, True),
        (SniffLimits(1000, 8192, ((25, 25), (8000, 8999))), 25, True),
        (SniffLimits(1000, 8192, ((25, 25), (8000, 8999))), 8443, True),
        (SniffLimits(1000, 8192, ((25, 25), (8000, 8999))), 443, False),
    ],
)
def test_ports(plane, rig, limits, port, looks):
    """Where servers speak first, and on ports that the owner left out, nobody waits."""
    one = rig(limits)

    async def scenario():
        await one.flow(to=Endpoint("203.0.113.7", port))
        assert one.waits is looks

    plane.run(scenario())


async def request(plane, one: Rig) -> bytes:
    """What the SOCKS server is asked for."""
    far = await plane.accept(one.socks)
    assert await plane.read(far, 3) == b"\x05\x01\x00"
    far.send(b"\x05\x00")
    head = await plane.read(far, 3)
    assert head == b"\x05\x01\x00"
    return await plane.loop.sock_recv(far, 300)


def test_a_server_that_is_asked_by_name(plane, rig):
    """No rule needs the name; the outbound does."""
    one = rig(PATIENT, PLAIN, by_name=True)

    async def scenario():
        await one.flow(REQUEST, to=FAR_AWAY)
        assert await request(plane, one) == encode_address(Endpoint("www.video.example", 80))

    plane.run(scenario())


@pytest.mark.parametrize("host", [b"localhost", b"192.0.2.7", b"a..b", b""])
def test_what_is_no_name_for_a_server_far_away(plane, rig, host):
    one = rig(PATIENT, PLAIN, by_name=True)

    async def scenario():
        await one.flow(REQUEST.replace(b"www.video.example", host), to=FAR_AWAY)
        assert await request(plane, one) == encode_address(FAR_AWAY)

    plane.run(scenario())


@pytest.mark.parametrize(("by_name", "port"), [(False, 80), (True, 81)])
def test_who_needs_no_name_does_not_wait(plane, rig, by_name, port):
    """Neither where nobody asks, nor under a rule with ``sniff: off``."""
    one = rig(PATIENT, PLAIN, by_name=by_name)

    async def scenario():
        await one.flow(to=Endpoint("203.0.113.7", port))
        assert not one.waits

    plane.run(scenario())


def test_the_wait_for_the_upstream_begins_with_the_decision(plane, rig):
    one = rig(PATIENT)

    async def scenario():
        client = await one.flow()
        flow = one.live
        one.dispatcher.expire_connects(flow.started + 999)
        assert one.waits
        client.send(b"hello\n")
        await plane.until(lambda: not one.waits)
        one.dispatcher.expire_connects(flow.quiet_since + 9)
        assert not one.closed
        one.dispatcher.expire_connects(flow.quiet_since + 11)
        assert flow.reason is CloseReason.CONNECT_TIMEOUT

    plane.run(scenario())
