"""A pipelined handshake is tried with one flow, and no server's dislike of it loses that flow."""

from __future__ import annotations

import asyncio
import socket

import pytest

from gateway.errors import UpstreamFailure
from gateway.flow import Endpoint, FlowFacts, Protocol
from gateway.kernel.sockets import SocketFactory, SocketOptions, endpoint
from gateway.outbound import manners
from gateway.outbound.socks5 import Socks5Outbound
from gateway.wire.socks5 import encode_request

TARGET = Endpoint("203.0.113.7", 443)
FACTS = FlowFacts(Protocol.TCP, Endpoint("192.168.20.5", 40000), TARGET)
GREETING = b"\x05\x01\x00"
REQUEST = encode_request(TARGET)
GRANTED = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
REFUSED = b"\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00"


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """No server is taken for a silent one where a test does not mean it."""
    monkeypatch.setattr(manners, "PATIENCE_S", 1000.0)


@pytest.fixture
def outbound(plane):
    """Makes an outbound to a server that the test plays."""

    def make(where: Endpoint, handshake: str = "auto") -> Socks5Outbound:
        factory = SocketFactory(None)
        return Socks5Outbound(
            "home", plane.reactor, factory, where, SocketOptions(), None, handshake
        )

    return make


async def serve_strictly(plane, far) -> None:
    """A server that takes one thing at a time."""
    assert await plane.loop.sock_recv(far, 100) == GREETING
    await plane.loop.sock_sendall(far, b"\x05\x00")
    assert await plane.loop.sock_recv(far, 100) == REQUEST
    await plane.loop.sock_sendall(far, GRANTED)


async def serve_at_once(plane, far) -> None:
    """A server that is sent everything, and answers everything."""
    assert await plane.loop.sock_recv(far, 100) == GREETING + REQUEST
    await plane.loop.sock_sendall(far, b"\x05\x00" + GRANTED + b"hello")


def test_a_server_that_bears_it_gets_it_from_then_on(plane, outbound, new_requester):
    server, where = plane.server()
    home = outbound(where)

    async def scenario():
        for _ in range(3):
            requester = new_requester()
            assert home.open(FACTS, requester) is not None
            await serve_at_once(plane, await plane.accept(server))
            assert (await requester.answer())[1] == b"hello"
        assert home.manners.pipelining is True

    plane.run(scenario())


@pytest.mark.parametrize("dislike", ["close", "garbage", "silence"])
def test_a_server_that_does_not_keeps_its_flow_and_is_spared_from_then_on(
    plane, outbound, monkeypatch, dislike, new_requester
):
    monkeypatch.setattr(manners, "PATIENCE_S", 0.01)
    server, where = plane.server()
    home = outbound(where)
    opened = home.factory.opened
    opened.wanted = True

    async def scenario():
        requester = new_requester()
        home.open(FACTS, requester)
        tried = await plane.accept(server)
        assert opened.sent(socket.SOCK_STREAM, endpoint(tried.getpeername()), where)
        assert await plane.loop.sock_recv(tried, 100) == GREETING + REQUEST
        await plane.loop.sock_sendall(tried, b"\x05\x00")  # and the request is swallowed
        if dislike == "close":
            tried.close()
        elif dislike == "garbage":
            await plane.loop.sock_sendall(tried, b"HTTP/1.1 400\r\n")
        await serve_strictly(plane, await plane.accept(server))
        leg, surplus = await requester.answer()
        assert (leg.getpeername(), surplus) == (where, b"")
        assert home.manners.pipelining is False

        second = new_requester()
        home.open(FACTS, second)
        await serve_strictly(plane, await plane.accept(server))
        await second.answer()

    plane.run(scenario())


def test_others_are_strict_while_one_tries(plane, outbound, new_requester):
    server, where = plane.server()
    home = outbound(where)

    async def scenario():
        first, second = new_requester(), new_requester()
        home.open(FACTS, first)
        tried = await plane.accept(server)
        home.open(FACTS, second)
        await serve_strictly(plane, await plane.accept(server))
        await second.answer()
        assert home.manners.pipelining is None
        await serve_at_once(plane, tried)
        await first.answer()
        assert home.manners.pipelining is True

    plane.run(scenario())


def test_an_answer_to_the_request_is_the_flows_answer(plane, outbound, new_requester):
    server, where = plane.server()
    home = outbound(where)

    async def scenario():
        requester = new_requester()
        home.open(FACTS, requester)
        far = await plane.accept(server)
        await plane.loop.sock_sendall(far, b"\x05\x00" + REFUSED)
        assert (await requester.answer())[0] is UpstreamFailure.REFUSED
        assert home.manners.unknown

    plane.run(scenario())


def test_where_both_fail_the_flow_fails_once(plane, outbound, new_requester):
    server, where = plane.server()
    home = outbound(where)

    async def scenario():
        requester = new_requester()
        home.open(FACTS, requester)
        (await plane.accept(server)).close()
        (await plane.accept(server)).close()
        assert (await requester.answer())[0] is UpstreamFailure.RESET
        assert home.manners.unknown

    plane.run(scenario())


def test_cancelling_closes_both_and_learns_nothing(plane, outbound, monkeypatch, new_requester):
    monkeypatch.setattr(manners, "PATIENCE_S", 0.0)
    server, where = plane.server()
    home = outbound(where)

    async def scenario():
        requester = new_requester()
        attempt = home.open(FACTS, requester)
        both = [await plane.accept(server), await plane.accept(server)]
        attempt.cancel()
        for far in both:
            while await plane.loop.sock_recv(far, 100):
                pass
        assert not requester.answers
        assert home.manners.unknown

    plane.run(scenario())


def test_a_server_that_is_not_there_fails_the_flow(plane, outbound, new_requester):
    requester = new_requester()
    home = outbound(plane.closed_port())
    home.open(FACTS, requester)
    assert plane.run(requester.answer())[0] is UpstreamFailure.REFUSED
    assert home.manners.unknown


@pytest.mark.parametrize(("handshake", "serve"), [("pipelined", serve_at_once)])
def test_what_is_written_down_is_not_tried(plane, outbound, handshake, serve, new_requester):
    server, where = plane.server()
    home = outbound(where, handshake)

    async def scenario():
        requesters = [new_requester(), new_requester()]
        for requester in requesters:
            home.open(FACTS, requester)
        fars = [await plane.accept(server) for _ in requesters]
        await asyncio.gather(*(serve(plane, far) for far in fars))
        for requester in requesters:
            await requester.answer()

    plane.run(scenario())


@pytest.mark.parametrize("handshake", ["auto", "strict"])
def test_the_clients_first_bytes_wait_unless_it_is_written_down(
    plane, outbound, handshake, new_requester
):
    """Whether the flow tries, or it has been learnt, or each answer is waited for."""
    server, where = plane.server()
    home = outbound(where, handshake)
    serve = serve_strictly if handshake == "strict" else serve_at_once

    async def scenario():
        for _ in range(2):
            requester = new_requester()
            requester.first = b"not yet"
            home.open(FACTS, requester)
            await serve(plane, await plane.accept(server))
            await requester.answer()
            assert requester.sent == 0

    plane.run(scenario())
