"""Ready connections: flows get them, and no flow suffers from one that is not."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace

import pytest

from gateway.errors import UpstreamFailure
from gateway.flow import Endpoint, FlowFacts, Protocol
from gateway.kernel.sockets import SocketFactory, SocketOptions, endpoint
from gateway.outbound import demand, manners, pool
from gateway.outbound.socks5 import Socks5Outbound
from gateway.wire.socks5 import Credentials, encode_request

TARGET = Endpoint("203.0.113.7", 443)
FACTS = FlowFacts(Protocol.TCP, Endpoint("192.168.20.5", 40000), TARGET)
REQUEST = encode_request(TARGET)
GRANTED = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
REFUSED = b"\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00"
LOGIN = Credentials("me", "secret")

ANONYMOUS_DIALOGUE = ((b"\x05\x01\x00", b"\x05\x00"),)
LOGIN_DIALOGUE = (
    (b"\x05\x02\x00\x02", b"\x05\x02"),
    (b"\x01\x02me\x06secret", b"\x01\x00"),
)


class Rig:
    """A pooled outbound, and its server, which the test plays."""

    def __init__(
        self, plane, new_requester, credentials: Credentials | None, handshake: str
    ) -> None:
        self.plane = plane
        self._new_requester = new_requester
        self.dialogue = ANONYMOUS_DIALOGUE if credentials is None else LOGIN_DIALOGUE
        self.server, self.where = plane.server()
        self.home = Socks5Outbound(
            "home",
            plane.reactor,
            SocketFactory(None),
            self.where,
            SocketOptions(),
            credentials,
            handshake,
            warm=True,
        )
        self.home.factory.opened.wanted = True
        assert self.home.pool is not None
        self.pool = self.home.pool

    def flow(self, first: bytes = b""):
        """Ask for a leg. ``first``: what the client has sent already."""
        requester = self._new_requester()
        requester.first = first
        requester.attempt = self.home.open(FACTS, requester)
        return requester

    def has_opened(self, far: socket.socket) -> bool:
        """Whether the loop detector knows a connection of which this is the server's end."""
        opened = self.home.factory.opened
        return opened.sent(socket.SOCK_STREAM, endpoint(far.getpeername()), self.where)

    async def accept(self) -> socket.socket:
        return await self.plane.accept(self.server)

    async def prepare(self, far: socket.socket) -> None:
        """Accept the gateway, on a connection of the pool or any other."""
        for expected, answer in self.dialogue:
            assert await self.plane.read(far, len(expected)) == expected
            far.send(answer)

    async def grant(self, far: socket.socket, reply: bytes = GRANTED) -> None:
        """Answer the request."""
        assert await self.plane.read(far, len(REQUEST)) == REQUEST
        far.send(reply)

    async def ordinary(self) -> None:
        """A flow that has a connection made for it."""
        requester = self.flow()
        far = await self.accept()
        await self.prepare(far)
        await self.grant(far)
        leg, _ = await requester.answer()
        assert endpoint(leg.getsockname()) == endpoint(far.getpeername())

    async def ready(self) -> socket.socket:
        """One ordinary flow; then a connection of the pool, ready: the server's end of it."""
        await self.ordinary()
        far = await self.accept()
        await self.prepare(far)
        await self.plane.until(lambda: len(self.pool))
        return far

    async def is_quiet(self) -> bool:
        """Whether the gateway opens no connection by itself."""
        await self.plane.turns(10)
        try:
            self.server.accept()[0].close()
        except BlockingIOError:
            return True
        return False


@pytest.fixture
def rig(plane, new_requester):
    """Makes one; the outbound is closed at the end, so nothing may be left of it."""
    made: list[Rig] = []

    def make(credentials: Credentials | None = None, handshake: str = "strict") -> Rig:
        made.append(Rig(plane, new_requester, credentials, handshake))
        return made[-1]

    yield make
    for one in made:
        one.home.close()


@pytest.fixture
def size(monkeypatch):
    """``size(3)``: a pool has three, once the server has accepted a connection."""

    def fix(count: int) -> None:
        monkeypatch.setattr(demand, "WORTH_S", 0.0)
        monkeypatch.setattr(demand, "MARGIN", 1e9)
        monkeypatch.setattr(demand, "MAX_SIZE", count)

    fix(1)
    return fix


@pytest.mark.parametrize("credentials", [None, LOGIN], ids=["anonymous", "login"])
@pytest.mark.usefixtures("size")
def test_flows_get_ready_connections_in_turn(plane, rig, credentials):
    one = rig(credentials)

    async def scenario():
        far = await one.ready()
        for number in range(3):
            requester = one.flow()
            assert one.has_opened(far)
            await one.grant(far, GRANTED + b"%d" % number)
            leg, surplus = await requester.answer()
            assert surplus == b"%d" % number
            assert endpoint(leg.getsockname()) == endpoint(far.getpeername())
            far = await one.accept()
            await one.prepare(far)
            await plane.until(lambda: len(one.pool))
        assert await one.is_quiet()

    plane.run(scenario())


def test_a_server_that_takes_its_time_gets_a_pool(plane, rig):
    one = rig()

    async def scenario():
        requester = one.flow()
        far = await one.accept()
        await asyncio.sleep(2 * demand.WORTH_S)
        await one.prepare(far)
        await one.grant(far)
        await requester.answer()
        await one.prepare(await one.accept())
        await plane.until(lambda: len(one.pool))

    plane.run(scenario())


def test_a_server_that_is_near_gets_none(plane, rig, monkeypatch):
    monkeypatch.setattr(demand, "WORTH_S", 1000.0)
    one = rig()

    async def scenario():
        for _ in range(3):
            await one.ordinary()
            assert await one.is_quiet()

    plane.run(scenario())


def test_no_more_than_are_wanted(plane, rig, size):
    size(3)
    one = rig()

    async def scenario():
        await one.ordinary()
        fars = [await one.accept() for _ in range(3)]
        for far in fars:
            await one.prepare(far)
        await plane.until(lambda: len(one.pool) == 3)
        assert await one.is_quiet()
        requesters = [one.flow() for _ in range(3)]
        for far in fars:
            await one.grant(far)
        for requester in requesters:
            await requester.answer()

    plane.run(scenario())


@pytest.mark.parametrize("end", ["closed", "reset", "closed when asked"])
@pytest.mark.usefixtures("size")
def test_a_stale_one_is_replaced_unseen(plane, rig, end):
    one = rig()

    async def scenario():
        far = await one.ready()
        stale = endpoint(far.getpeername())
        if end == "closed":
            far.close()
        elif end == "reset":
            plane.reset(far)
        requester = one.flow()  # before the reactor has seen the end
        if end == "closed when asked":
            await plane.read(far, len(REQUEST))
            far.close()
        await serve_all(one, requester)
        leg, _ = await requester.answer()
        assert endpoint(leg.getsockname()) != stale

    plane.run(scenario())


async def serve_all(one: Rig, requester) -> None:
    """Serve whatever connection comes, as far as it goes, until the flow is answered."""

    async def serve(far: socket.socket) -> None:
        await one.prepare(far)
        await one.grant(far)

    async def accept_all() -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(serve(await one.accept()))

    task = asyncio.ensure_future(accept_all())
    await one.plane.until(lambda: requester.answers)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("reply", "failure"),
    [(REFUSED, UpstreamFailure.REFUSED), (b"\x05", UpstreamFailure.RESET)],
    ids=["refused", "cut"],
)
@pytest.mark.usefixtures("size")
def test_what_the_server_replies_is_the_flows_answer(plane, rig, reply, failure):
    one = rig()

    async def scenario():
        far = await one.ready()
        requester = one.flow()
        await one.grant(far, reply)
        far.close()
        assert (await requester.answer())[0] is failure

    plane.run(scenario())


@pytest.mark.parametrize("says", [b"", b"\x05", GRANTED], ids=["end", "a byte", "a reply"])
@pytest.mark.usefixtures("size")
def test_one_on_which_the_server_stirs_is_dropped_at_once(plane, rig, says):
    one = rig()

    async def scenario():
        far = await one.ready()
        if says:
            far.send(says)
        else:
            far.shutdown(socket.SHUT_WR)
        await plane.until(lambda: not len(one.pool))
        assert await plane.read_to_end(far) == b""
        assert await one.is_quiet(), "another one is for a flow to ask for"
        requester = one.flow()
        far = await one.accept()
        assert await one.is_quiet(), "and for the server to be worth"
        await one.prepare(far)
        await one.prepare(await one.accept())
        await one.grant(far)
        await requester.answer()

    plane.run(scenario())


@pytest.mark.parametrize("how_far", ["silent", "ready"])
@pytest.mark.usefixtures("size")
def test_they_age_out(plane, rig, monkeypatch, how_far):
    monkeypatch.setattr(pool, "MAX_AGE_S", 0.05)
    one = rig()

    async def scenario():
        await one.ordinary()
        far = await one.accept()
        if how_far == "ready":
            await one.prepare(far)
        else:
            await plane.read(far, 3)
        assert await plane.read_to_end(far) == b""
        assert not len(one.pool)
        assert await one.is_quiet()
        await one.ordinary()
        await one.prepare(await one.accept())

    plane.run(scenario())


def test_only_the_old_ones_age_out(plane, rig, size, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=lambda: clock.now))
    timers, handles = [], []

    def call_later(delay_s: float, callback) -> asyncio.TimerHandle:
        timers.append((delay_s, callback))
        handles.append(plane.loop.call_later(1000, callback))
        return handles[-1]

    monkeypatch.setattr(plane.reactor, "call_later", call_later)
    one = rig()

    async def scenario():
        old = await one.ready()
        clock.now += 5
        size(2)
        one.pool.measured(1.0)
        await one.prepare(await one.accept())
        await plane.until(lambda: len(one.pool) == 2)
        ((delay_s, expire),) = timers
        assert delay_s == pool.MAX_AGE_S
        clock.now = 1000.0 + delay_s
        expire()
        assert await plane.read_to_end(old) == b""
        assert len(one.pool) == 1
        assert timers[1][0] == 5
        one.home.close()
        assert handles[1].cancelled()

    plane.run(scenario())


def test_closing_closes_what_no_flow_has(plane, rig, size):
    size(3)
    one = rig()

    async def scenario():
        await one.ordinary()
        lent, waiting, silent = [await one.accept() for _ in range(3)]
        await one.prepare(lent)
        await plane.until(lambda: len(one.pool))
        requester = one.flow()
        await one.prepare(waiting)
        await plane.until(lambda: len(one.pool))
        await plane.read(silent, 3)
        another = await one.accept()
        one.home.close()
        assert not len(one.pool)
        for far in (waiting, silent):
            assert await plane.read_to_end(far) == b""
        assert await plane.read_to_end(another) in (b"", b"\x05\x01\x00")
        await one.grant(lent)
        assert isinstance((await requester.answer())[0], socket.SocketType)
        one.pool.measured(1.0)
        assert await one.is_quiet()

    plane.run(scenario())


@pytest.mark.usefixtures("size")
def test_a_flow_that_is_cancelled_closes_its_leg(plane, rig):
    one = rig()

    async def scenario():
        far = await one.ready()
        requester = one.flow()
        requester.attempt.cancel()
        assert await plane.read_to_end(far) == REQUEST
        assert not requester.answers

    plane.run(scenario())


@pytest.mark.usefixtures("size")
def test_a_flow_that_is_cancelled_closes_the_replacement(plane, rig):
    one = rig()

    async def scenario():
        far = await one.ready()
        requester = one.flow()
        await one.prepare(await one.accept())
        await plane.until(lambda: len(one.pool))
        await plane.read(far, len(REQUEST))
        far.close()
        replacement = await one.accept()
        assert one.has_opened(replacement)
        requester.attempt.cancel()
        assert await plane.read_to_end(replacement) in (b"", b"\x05\x01\x00")
        assert not requester.answers

    plane.run(scenario())


@pytest.mark.usefixtures("size")
def test_a_server_that_is_gone_is_left_alone_and_flows_are_told(plane, rig):
    one = rig()

    async def scenario():
        far = await one.ready()
        one.server.close()
        requester = one.flow()
        await one.grant(far)
        await requester.answer()
        # What the pool began was refused; so is the next flow, which goes by itself.
        await plane.turns(10)
        assert not len(one.pool)
        assert (await one.flow().answer())[0] is UpstreamFailure.REFUSED

    plane.run(scenario())


@pytest.mark.usefixtures("size")
def test_without_descriptors_the_pool_gives_up_and_the_flow_goes_on(plane, rig, descriptors):
    one = rig()

    async def scenario():
        far = await one.ready()
        descriptors(0)
        requester = one.flow()
        await one.grant(far)
        assert isinstance((await requester.answer())[0], socket.SocketType)
        assert not len(one.pool)

    plane.run(scenario())


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.usefixtures("size")
def test_first_bytes_go_behind_the_request_whoever_carries_it(plane, rig, stale):
    one = rig(handshake="pipelined")

    async def scenario():
        far = await one.ready()
        requester = one.flow(b"hello")
        await one.prepare(await one.accept())
        await plane.until(lambda: len(one.pool))
        assert await plane.read(far, len(REQUEST) + 5) == REQUEST + b"hello"
        if stale:
            far.close()
            far = await one.accept()
            greeting = one.dialogue[0][0]
            sent = greeting + REQUEST + b"hello"
            assert await plane.read(far, len(sent)) == sent
            far.send(b"\x05\x00")
        far.send(GRANTED)
        await requester.answer()
        assert requester.sent == 5

    plane.run(scenario())


@pytest.mark.parametrize("handshake", ["auto", "strict"])
@pytest.mark.usefixtures("size")
def test_a_ready_connection_takes_no_first_bytes_unless_it_is_written_down(
    plane, rig, handshake, monkeypatch
):
    monkeypatch.setattr(manners, "PATIENCE_S", 1000.0)
    one = rig(handshake=handshake)

    async def scenario():
        far = await one.ready()
        requester = one.flow(b"not yet")
        await one.grant(far)
        await requester.answer()
        assert requester.sent == 0

    plane.run(scenario())
