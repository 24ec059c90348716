"""Outbounds against real servers on loopback: each opens a leg, or says why there is none."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace

import pytest

from gateway.errors import UpstreamFailure
from gateway.flow import Endpoint, FlowFacts, Protocol
from gateway.kernel.reactor import OUT
from gateway.kernel.sockets import SocketFactory, SocketOptions, endpoint
from gateway.outbound.direct import DirectOutbound
from gateway.outbound.reject import RejectOutbound
from gateway.outbound.socks5 import Socks5Outbound
from gateway.wire.socks5 import Credentials, encode_request

CLIENT = Endpoint("192.168.20.5", 40000)
TARGET = Endpoint("203.0.113.7", 443)
GRANTED = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"


def facts(destination: Endpoint = TARGET) -> FlowFacts:
    return FlowFacts(Protocol.TCP, CLIENT, destination)


@pytest.fixture
def socks(plane):
    """Makes an outbound to a server, which the test plays."""

    def make(server: Endpoint, credentials: Credentials | None = None) -> Socks5Outbound:
        return Socks5Outbound(
            "home", plane.reactor, SocketFactory(None), server, SocketOptions(), credentials
        )

    return make


def direct(plane, **settings: object) -> DirectOutbound:
    return DirectOutbound("direct", plane.reactor, SocketFactory(None), SocketOptions(), **settings)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_direct_connects_to_the_destination(plane, requester, host):
    server, where = plane.server(host)

    async def scenario():
        home = direct(plane)
        home.factory.opened.wanted = True
        home.open(facts(where), requester)
        far = await plane.accept(server)
        assert home.factory.opened.sent(socket.SOCK_STREAM, endpoint(far.getpeername()), where)
        leg, surplus = await requester.answer()
        assert endpoint(leg.getsockname()) == endpoint(far.getpeername())
        assert surplus == b""

    plane.run(scenario())


def test_direct_is_refused(plane, requester):
    direct(plane).open(facts(plane.closed_port()), requester)
    answer = plane.run(requester.answer())
    assert answer == (UpstreamFailure.REFUSED, "Connection refused")


@pytest.mark.parametrize(
    ("options", "failure"),
    [
        (SocketOptions(device="gw-none0"), UpstreamFailure.UNREACHABLE),
        (SocketOptions(sources=("192.0.2.7",)), UpstreamFailure.UNREACHABLE),
    ],
)
def test_what_fails_at_once_is_told_at_once(plane, requester, options, failure):
    outbound = DirectOutbound("direct", plane.reactor, SocketFactory(None), options)
    assert outbound.open(facts(), requester) is None
    assert [told for told, _ in requester.answers] == [failure]


def test_without_descriptors_it_is_our_resources_that_are_missing(plane, requester, descriptors):
    descriptors(0)
    assert direct(plane).open(facts(), requester) is None
    assert [told for told, _ in requester.answers] == [UpstreamFailure.RESOURCES]


@pytest.mark.usefixtures("root")
def test_direct_with_the_clients_own_source(plane, requester):
    """An address that is not this machine's own; the port is left to the kernel."""
    _, where = plane.server()
    home = direct(plane, preserve_source=True)
    source = CLIENT._replace(port=4000)  # none that the kernel would choose by itself
    noted = []
    home.factory.opened = SimpleNamespace(wanted=True, note=lambda *given: noted.append(given))
    attempt = home.open(facts(where)._replace(source=source), requester)
    ((_, local, remote),) = noted
    assert (local.host, remote) == (source.host, where)
    assert local.port not in {0, source.port}
    attempt.cancel()


def test_cancel_closes_and_calls_nobody(plane, requester):
    server, where = plane.server()

    async def scenario():
        attempt = direct(plane).open(facts(where), requester)
        attempt.cancel()
        far = await plane.accept(server)
        assert await plane.loop.sock_recv(far, 1) == b""
        assert not requester.answers

    plane.run(scenario())


def test_reject_says_so_at_once(requester):
    assert RejectOutbound("reject").open(facts(), requester) is None
    assert requester.answers == [(UpstreamFailure.REJECTED, "")]


def test_a_refused_outbound_says_why(requester):
    outbound = RejectOutbound("home", UpstreamFailure.UNREACHABLE, "it would loop")
    assert outbound.open(facts(), requester) is None
    assert requester.answers == [(UpstreamFailure.UNREACHABLE, "it would loop")]


async def play(plane, far: socket.socket, *dialogue: tuple[bytes, bytes]) -> None:
    """Expect and answer, turn by turn, a byte at a time."""
    for expected, answer in dialogue:
        assert await plane.read(far, len(expected)) == expected
        for at in range(len(answer)):
            far.send(answer[at : at + 1])
            await plane.turns(1)


@pytest.mark.parametrize("target", [TARGET, Endpoint("2001:db8::7", 80)], ids=["v4", "v6"])
def test_socks5_anonymous(plane, requester, socks, target):
    server, where = plane.server()

    async def scenario():
        socks(where).open(facts(target), requester)
        far = await plane.accept(server)
        await play(
            plane, far, (b"\x05\x01\x00", b"\x05\x00"), (encode_request(target), GRANTED + b"hi")
        )
        leg, surplus = await requester.answer()
        rest = await plane.read(leg, 2 - len(surplus))
        assert surplus + rest == b"hi"

    plane.run(scenario())


def test_socks5_login(plane, requester, socks):
    server, where = plane.server()

    async def scenario():
        socks(where, Credentials("me", "secret")).open(facts(), requester)
        await play(
            plane,
            await plane.accept(server),
            (b"\x05\x02\x00\x02", b"\x05\x02"),
            (b"\x01\x02me\x06secret", b"\x01\x00"),
            (encode_request(TARGET), GRANTED),
        )
        _, surplus = await requester.answer()
        assert surplus == b""

    plane.run(scenario())


class Cramped(socket.SocketType):
    """A socket with room for a few bytes at a time, as a SYN may have."""

    ROOM = 7

    def send(self, data: bytes) -> int:
        return super().send(data[: self.ROOM])


def test_what_does_not_fit_a_syn_follows(plane, requester, monkeypatch):
    """And nothing of it counts as the client's, who has said a little already."""
    monkeypatch.setattr("gateway.kernel.sockets.SocketType", Cramped)
    server, where = plane.server()
    login = Credentials("me", "secret")
    home = Socks5Outbound(
        "home", plane.reactor, SocketFactory(None), where, SocketOptions(), login, "pipelined"
    )
    requester.first = b"GET /"
    opening = b"\x05\x01\x02\x01\x02me\x06secret" + encode_request(TARGET)

    async def scenario():
        attempt = home.open(facts(), requester)
        far = await plane.accept(server)
        for at in range(0, len(opening), Cramped.ROOM):
            part = opening[at : at + Cramped.ROOM]
            assert await plane.read(far, len(part)) == part
            attempt.on_ready(-1, OUT)  # as when there is room again
        far.send(b"\x05\x02\x01\x00" + GRANTED)
        await requester.answer()
        assert requester.sent == 0

    plane.run(scenario())


def test_what_comes_with_the_reply_is_handed_over(plane, requester, socks):
    server, where = plane.server()

    async def scenario():
        socks(where).open(facts(), requester)
        far = await plane.accept(server)
        await plane.read(far, 3)
        far.send(b"\x05\x00")
        await plane.read(far, len(encode_request(TARGET)))
        far.send(GRANTED + b"220 welcome")
        _, surplus = await requester.answer()
        assert surplus == b"220 welcome"

    plane.run(scenario())


@pytest.mark.parametrize(
    ("replies", "failure", "words"),
    [
        ([b"\x05\xff"], UpstreamFailure.DENIED, "login"),
        ([b"\x05\x00", b"\x05\x05"], UpstreamFailure.REFUSED, "connection refused"),
        ([b"\x05\x00", b"\x05\x04"], UpstreamFailure.UNREACHABLE, "host unreachable"),
        ([b"HTTP/1.1 400 Bad Request\r\n"], UpstreamFailure.PROTOCOL, "not SOCKS5"),
        ([b""], UpstreamFailure.RESET, "closed during the handshake"),
        ([b"\x05\x00", b""], UpstreamFailure.RESET, "closed during the handshake"),
        ([b"\x05\x00", b"\x05\x00\x00", b""], UpstreamFailure.RESET, "closed during"),
    ],
)
def test_socks5_refusals(plane, requester, socks, replies, failure, words):
    """An empty reply is the server's FIN."""
    server, where = plane.server()

    async def scenario():
        socks(where).open(facts(), requester)
        far = await plane.accept(server)
        await plane.read(far, 3)
        for reply in replies:
            if reply:
                far.send(reply)
                await plane.turns(3)
            else:
                far.shutdown(socket.SHUT_WR)
        told, detail = await requester.answer()
        assert told is failure
        assert words in detail
        await plane.until(lambda: is_closed(far))

    plane.run(scenario())


def is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1000) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_a_server_that_speaks_first_is_no_socks_server(plane, requester, socks):
    """Its banner comes with the same edge as the connection: no other one would follow."""
    server, where = plane.server()

    async def scenario():
        socks(where).open(facts(), requester)
        (await plane.accept(server)).send(b"SSH-2.0-server\r\n")
        told, detail = await requester.answer()
        assert told is UpstreamFailure.PROTOCOL
        assert "not SOCKS5" in detail

    plane.run(scenario())


def test_a_server_that_resets(plane, requester, socks):
    server, where = plane.server()

    async def scenario():
        socks(where).open(facts(), requester)
        far = await plane.accept(server)
        await plane.read(far, 3)
        plane.reset(far)
        assert await requester.answer() == (UpstreamFailure.RESET, "Connection reset by peer")

    plane.run(scenario())


def test_a_server_that_is_not_there(plane, requester, socks):
    socks(plane.closed_port()).open(facts(), requester)
    assert plane.run(requester.answer())[0] is UpstreamFailure.REFUSED


def test_a_login_that_does_not_fit_leaves_no_socket(plane, requester, socks):
    """The configuration refuses it; were it to come so far, no descriptor may be lost."""
    server, where = plane.server()
    with pytest.raises(ValueError, match="1 to 255 bytes"):
        socks(where, Credentials("me", "é" * 200)).open(facts(), requester)
    with pytest.raises(BlockingIOError):
        server.accept()


def test_secrets_do_not_show_in_an_outbound(socks):
    assert "hidden-one" not in repr(socks(TARGET, Credentials("me", "hidden-one")))


def test_many_at_once(plane, socks, new_requester):
    """Each requester is told once, and of its own leg."""
    server, where = plane.server()
    requesters = [new_requester() for _ in range(100)]

    async def serve(far: socket.socket) -> None:
        await play(plane, far, (b"\x05\x01\x00", b"\x05\x00"))
        request = await plane.read(far, 10)
        far.send(GRANTED + request[8:])  # the port, which tells them apart

    async def scenario():
        for number, one in enumerate(requesters):
            socks(where).open(facts(Endpoint("203.0.113.7", 1000 + number)), one)
        tasks = [plane.loop.create_task(serve(await plane.accept(server))) for _ in requesters]
        await asyncio.gather(*tasks)
        for number, one in enumerate(requesters):
            leg, surplus = await one.answer()
            surplus += await plane.read(leg, 2 - len(surplus))
            assert surplus == (1000 + number).to_bytes(2, "big")

    plane.run(scenario())
