"""The relay between two real TCP connections: every byte, in order, once; and every end."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
from collections.abc import Callable, Iterator

import pytest

from gateway.flow import CloseReason
from gateway.kernel.sockets import (
    SocketFactory,
    SocketOptions,
    accept,
    local_endpoint,
    open_listener,
)
from gateway.kernel.splice import PIPE_BYTES
from gateway.relay.tcp import BUDGET, BUFFER_BYTES, SPLICE_AFTER, Direction, Mover, Relay

SMALL = 32 << 10


class Bystander:
    """Watches a leg before the relay does, as dispatcher and outbound do."""

    def on_ready(self, fd, events):
        pass

    def abort(self):
        pass


class Rig:
    """A client, a server, and the relay between them."""

    def __init__(
        self,
        plane,
        mover: Mover,
        *,
        surplus: bytes = b"",
        buffer: int = 0,
        server_buffer: int | None = None,
    ) -> None:
        self.plane = plane
        self.mover = mover
        listener = plane.own(open_listener("127.0.0.1", 0, transparent=False), buffer)
        self.client = plane.dial(local_endpoint(listener), buffer=buffer)
        self._client_leg = plane.own(accept(plane.ready(listener))[0])
        if server_buffer is not None:
            buffer = server_buffer
        server, where = plane.server(buffer=buffer)
        self._upstream_leg = plane.own(
            SocketFactory(None).connect_tcp(where, SocketOptions()), buffer
        )
        self.server = plane.own(plane.ready(server).accept()[0])
        self.reasons: list[CloseReason] = []
        self.relay = Relay(mover, self._client_leg, self._upstream_leg, surplus, self)
        for leg in (self._client_leg, self._upstream_leg):
            plane.reactor.watch(leg.fileno(), Bystander())

    def relay_closed(self, reason: CloseReason) -> None:
        self.reasons.append(reason)

    def start(self) -> Rig:
        self.relay.start()
        return self

    async def closed(self) -> CloseReason:
        """Wait for the end; return why."""
        await self.plane.until(lambda: self.reasons)
        (reason,) = self.reasons
        return reason

    def give_up(self) -> None:
        """End what the test left open, and see that nothing is kept."""
        self.relay.close(CloseReason.SHUTDOWN)
        assert len(self.reasons) == 1, "on_closed is called once"
        assert self._client_leg.fileno() == self._upstream_leg.fileno() == -1
        assert self.relay.up.pipe is None
        assert self.relay.down.pipe is None


@pytest.fixture
def mover(plane) -> Iterator[Mover]:
    made = Mover(plane.reactor)
    yield made
    made.pipes.close()


@pytest.fixture
def rig(plane, mover) -> Iterator[Callable[..., Rig]]:
    """Makes rigs; at the end all their pipes must be back."""
    made: list[Rig] = []

    def make(**settings: object) -> Rig:
        made.append(Rig(plane, mover, **settings))
        return made[-1]

    yield make
    for each in made:
        each.give_up()
    assert mover.pipes.lent == 0


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def send_in_chunks(plane, sock: socket.socket, data: bytes, chooser: random.Random) -> None:
    """Send everything in pieces of very different sizes, then shut the write side."""
    view = memoryview(data)
    while view:
        size = min(len(view), chooser.choice((1, 100, 4095, 65537, 1 << 20)))
        await plane.loop.sock_sendall(sock, view[:size])
        view = view[size:]
        if chooser.random() < 0.2:
            await asyncio.sleep(0)
    sock.shutdown(socket.SHUT_WR)


async def exchange(rig: Rig, upload: bytes, download: bytes, seed: int) -> None:
    """Send both ways at once, to the end; every byte arrives, in order, and is counted."""
    plane = rig.plane
    _, _, got_up, got_down = await asyncio.gather(
        send_in_chunks(plane, rig.client, upload, random.Random(seed)),
        send_in_chunks(plane, rig.server, download, random.Random(-seed)),
        plane.read_to_end(rig.server),
        plane.read_to_end(rig.client),
    )
    assert (len(got_up), digest(got_up)) == (len(upload), digest(upload))
    assert (len(got_down), digest(got_down)) == (len(download), digest(download))
    assert await rig.closed() is CloseReason.DONE
    assert (rig.relay.up.moved, rig.relay.down.moved) == (len(upload), len(download))


SIZES = [0, 1, 4096, SPLICE_AFTER - 1, SPLICE_AFTER, SPLICE_AFTER + 1, BUFFER_BYTES + 1, 5 << 20]


@pytest.mark.parametrize("buffer", [0, SMALL], ids=["tuned", "small-buffers"])
@pytest.mark.parametrize("size", SIZES)
def test_both_ways_at_once(plane, rig, size, buffer):
    upload = random.Random(size).randbytes(size)
    download = random.Random(size + 1).randbytes(SIZES[-1] - size)
    plane.run(exchange(rig(buffer=buffer).start(), upload, download, seed=size + 7))


@pytest.mark.parametrize("seed", range(12))
def test_random_traffic(plane, rig, seed):
    chooser = random.Random(seed)
    upload = chooser.randbytes(int(2 ** chooser.uniform(0, 22)))
    download = chooser.randbytes(int(2 ** chooser.uniform(0, 22)))
    buffer = chooser.choice((0, 8 << 10, 100 << 10))
    plane.run(exchange(rig(buffer=buffer).start(), upload, download, seed))


def test_bulk_goes_through_a_pipe_and_gives_it_back(plane, rig, mover):
    """Otherwise the tests above would prove the copy alone."""
    one = rig()
    lent: list[int] = []
    acquire = mover.pipes.acquire

    def count():
        lent.append(mover.pipes.lent)
        return acquire()

    mover.pipes.acquire = count
    plane.run(exchange(one.start(), os.urandom(4 << 20), b"", seed=1))
    assert lent
    assert max(lent) <= 1


def test_small_flows_never_take_a_pipe(plane, rig, mover):
    mover.pipes.acquire = None  # would raise
    plane.run(exchange(rig().start(), bytes(SPLICE_AFTER - 1), bytes(SPLICE_AFTER - 1), seed=2))


def test_without_pipes_all_is_copied(plane, rig, mover, descriptors):
    one = rig(buffer=SMALL)
    descriptors(0)
    assert mover.pipes.acquire() is None
    plane.run(exchange(one.start(), os.urandom(2 << 20), os.urandom(2 << 20), seed=3))


def test_pipes_that_run_out_midway_change_nothing(plane, rig, descriptors):
    one = rig(buffer=SMALL).start()
    upload = os.urandom(3 << 20)

    async def scenario():
        sending = plane.loop.create_task(
            send_in_chunks(plane, one.client, upload, random.Random(4))
        )
        got = await plane.read(one.server, 1 << 20)
        descriptors(0)
        got += await plane.read_to_end(one.server)
        await sending
        assert digest(got) == digest(upload)

    plane.run(scenario())


def test_messages_after_bulk_are_copied_again(plane, rig):
    one = rig().start()

    async def scenario():
        bulk = os.urandom(1 << 20)
        await plane.loop.sock_sendall(one.client, bulk)
        assert await plane.read(one.server, len(bulk)) == bulk
        assert one.relay.up.moved >= one.relay.up.splice_at
        for number in range(3):
            message = b"message %d" % number
            one.client.send(message)
            assert await plane.read(one.server, len(message)) == message
        assert one.relay.up.moved < one.relay.up.splice_at
        assert one.relay.up.pipe is None

    plane.run(scenario())


def test_thousands_of_tiny_messages(plane, rig):
    one = rig().start()

    async def scenario():
        for number in range(3000):
            asked = number.to_bytes(2, "big")
            one.client.send(asked)
            assert await plane.read(one.server, 2) == asked
            one.server.send(asked[::-1])
            assert await plane.read(one.client, 2) == asked[::-1]

    plane.run(scenario())
    assert one.relay.up.moved == one.relay.down.moved == 6000


def test_the_surplus_of_the_handshake_comes_first(plane, rig):
    one = rig(surplus=b"220 ")
    one.server.send(b"welcome\r\n")

    async def scenario():
        one.start()
        assert await plane.read(one.client, 13) == b"220 welcome\r\n"
        assert one.relay.down.moved == 13

    plane.run(scenario())


def test_what_waited_before_the_start_is_relayed(plane, rig):
    """The edges of these bytes, and of the FIN behind them, went to another watcher."""
    one = rig()
    one.client.send(b"early")
    one.client.shutdown(socket.SHUT_WR)

    async def scenario():
        await plane.turns()
        one.start()
        assert await plane.read_to_end(one.server) == b"early"

    plane.run(scenario())


@pytest.mark.parametrize("size", [100, 10 << 20])
@pytest.mark.parametrize("way", ["client", "server"])
def test_half_close_then_the_other_side_goes_on(plane, rig, way, size):
    one = rig().start()
    first, second = (one.client, one.server) if way == "client" else (one.server, one.client)
    answer = os.urandom(size)

    async def scenario():
        first.send(b"question")
        first.shutdown(socket.SHUT_WR)
        assert await plane.read_to_end(second) == b"question"
        assert one.relay.half_closed
        assert not one.reasons
        sending = plane.loop.create_task(plane.loop.sock_sendall(second, answer))
        assert digest(await plane.read(first, size)) == digest(answer)
        await sending
        assert not one.reasons, "the other side has not ended yet"
        second.shutdown(socket.SHUT_WR)
        assert await plane.read_to_end(first) == b""
        assert await one.closed() is CloseReason.DONE

    plane.run(scenario())


def test_both_ends_close_at_once(plane, rig):
    one = rig().start()
    one.client.send(b"last words")
    one.client.close()
    one.server.close()

    async def scenario():
        assert await one.closed() in {CloseReason.DONE, CloseReason.UPSTREAM_RESET}

    plane.run(scenario())


async def fill(plane, sock: socket.socket, way: Direction) -> bytes:
    """Send until nothing more is taken, because the reader at the far end does not read."""
    sent = bytearray()
    refused = 0
    while refused < 20 or not way.blocked:
        piece = os.urandom(64 << 10)
        try:
            sent += piece[: sock.send(piece)]
            refused = 0
        except BlockingIOError:
            refused += 1
            await asyncio.sleep(0.001)
        assert len(sent) < 64 << 20, "nobody pushes back"
    return bytes(sent)


@pytest.mark.parametrize("pipes", [True, False], ids=["spliced", "copied"])
def test_a_slow_reader_stops_the_sender(plane, rig, descriptors, pipes):
    one = rig(buffer=SMALL).start()
    if not pipes:
        descriptors(0)

    async def scenario():
        sent = await fill(plane, one.client, one.relay.up)
        way = one.relay.up
        piped = 0 if way.pipe is None else way.pipe.filled
        held = len(way.rest) + piped
        assert 0 < held <= (PIPE_BYTES if pipes else BUFFER_BYTES)
        assert bool(piped) is pipes
        assert not (way.rest and piped)
        moved = way.moved
        await plane.turns(20)
        assert way.moved == moved, "blocked is blocked"
        assert len(sent) < held + 12 * SMALL, "what was taken is in bounded buffers"

        one.server.send(b"the other way is free")
        assert await plane.read(one.client, 21) == b"the other way is free"

        one.client.shutdown(socket.SHUT_WR)
        await plane.turns()
        assert not way.done, "no FIN before the last byte"
        assert digest(await plane.read_to_end(one.server)) == digest(sent)
        await plane.until(lambda: way.done)

    plane.run(scenario())


def test_the_last_data_and_the_fin_in_one_edge(plane, rig):
    """Its end is known before all of it is written: the FIN waits for the last byte."""
    one = rig(buffer=4 * BUFFER_BYTES, server_buffer=8 << 10).start()
    last = os.urandom(BUFFER_BYTES - 1)

    async def scenario():
        await plane.turns()
        assert one.client.send(last) == len(last)
        one.client.shutdown(socket.SHUT_WR)
        await plane.until(lambda: one.relay.up.blocked)
        await plane.turns()
        assert one.relay.up.rest
        assert not one.relay.up.done
        assert digest(await plane.read_to_end(one.server)) == digest(last)

    plane.run(scenario())


async def expect_reset(plane, sock: socket.socket) -> bytes:
    """Read to the reset; return what came before."""
    got = bytearray()
    try:
        while part := await plane.loop.sock_recv(sock, 1 << 16):
            got += part
    except ConnectionResetError:
        return bytes(got)
    pytest.fail("a FIN instead of a RST")


RESETS = [("client", CloseReason.CLIENT_RESET), ("server", CloseReason.UPSTREAM_RESET)]


@pytest.mark.parametrize(("who", "reason"), RESETS)
def test_a_reset_is_passed_on(plane, rig, who, reason):
    one = rig().start()
    mine, other = (one.client, one.server) if who == "client" else (one.server, one.client)

    async def scenario():
        mine.send(b"x")
        assert await plane.read(other, 1) == b"x"
        plane.reset(mine)
        assert await expect_reset(plane, other) == b""
        assert await one.closed() is reason

    plane.run(scenario())


@pytest.mark.parametrize("size", [10, SPLICE_AFTER + 5])
@pytest.mark.parametrize(("who", "reason"), RESETS)
def test_what_came_before_a_reset_is_passed_on_first(plane, rig, who, reason, size):
    """A server that answers and closes with unread input resets behind its answer."""
    one = rig().start()
    mine, other = (one.client, one.server) if who == "client" else (one.server, one.client)
    answer = os.urandom(size)

    async def scenario():
        await plane.turns()
        assert mine.send(answer) == size
        plane.reset(mine)  # both wait at the relay when the loop turns next
        assert await expect_reset(plane, other) == answer
        assert await one.closed() is reason

    plane.run(scenario())


@pytest.mark.parametrize(("who", "reason"), RESETS)
def test_a_reset_after_a_half_close_ends_the_flow(plane, rig, who, reason):
    """Nothing is left to be read from that leg, and nothing comes from the other."""
    one = rig().start()
    mine, other = (one.client, one.server) if who == "client" else (one.server, one.client)

    async def scenario():
        mine.shutdown(socket.SHUT_WR)
        assert await plane.read_to_end(other) == b""
        plane.reset(mine)
        assert await one.closed() is reason
        with pytest.raises(BrokenPipeError):  # how a RST shows where a FIN was read before
            await plane.until(lambda: other.send(b"x") == 0)

    plane.run(scenario())


@pytest.mark.parametrize("gone", ["sender", "reader"])
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_reset_while_blocked_ends_the_flow(plane, rig, way, gone):
    one = rig(buffer=SMALL).start()
    sender, reader = (one.client, one.server) if way == "up" else (one.server, one.client)

    async def scenario():
        await fill(plane, sender, getattr(one.relay, way))
        leaver = sender if gone == "sender" else reader
        plane.reset(leaver)
        expected = CloseReason.CLIENT_RESET if leaver is one.client else CloseReason.UPSTREAM_RESET
        assert await one.closed() is expected
        # The pipe had bytes of this flow inside: no other flow may get them.
        await exchange(rig().start(), os.urandom(1 << 20), os.urandom(1 << 20), seed=5)

    plane.run(scenario())


def test_a_reset_amid_bulk_both_ways(plane, rig):
    one = rig(buffer=SMALL).start()

    async def scenario():
        await fill(plane, one.client, one.relay.up)
        await fill(plane, one.server, one.relay.down)
        plane.reset(one.server)
        assert await one.closed() is CloseReason.UPSTREAM_RESET
        await expect_reset(plane, one.client)

    plane.run(scenario())


def test_closing_from_outside_resets_both(plane, rig):
    one = rig().start()

    async def scenario():
        await plane.turns()
        one.relay.close(CloseReason.IDLE_TIMEOUT)
        await asyncio.gather(expect_reset(plane, one.client), expect_reset(plane, one.server))
        assert await one.closed() is CloseReason.IDLE_TIMEOUT

    plane.run(scenario())


@pytest.mark.parametrize("before", [0, SPLICE_AFTER + 1], ids=["copied", "spliced"])
def test_urgent_data_neither_stalls_nor_vanishes(plane, rig, before):
    """telnet and FTP interrupt with it (RFC 854, RFC 959); reads stop at its mark (tcp(7))."""
    one = rig().start()

    async def scenario():
        await plane.loop.sock_sendall(one.client, bytes(before))
        await plane.read(one.server, before)
        one.client.send(b"stop!", socket.MSG_OOB)
        one.client.send(b" and go on")
        assert await plane.read(one.server, 15) == b"stop! and go on"
        one.client.send(b", please")
        one.client.shutdown(socket.SHUT_WR)
        assert await plane.read_to_end(one.server) == b", please"

    plane.run(scenario())


@pytest.mark.usefixtures("root")
def test_a_busy_flow_lets_others_through(plane, rig):
    """All its data waits when it starts; the other's message comes through before its last."""
    waiting = 8 * BUDGET * PIPE_BYTES
    busy, calm = rig(buffer=2 * waiting), rig().start()

    async def scenario():
        data = bytes(waiting)
        await plane.loop.sock_sendall(busy.client, data)
        calm.client.send(b"ping")
        busy.start()
        assert SPLICE_AFTER < busy.relay.up.moved <= BUDGET * PIPE_BYTES
        while not calm.relay.up.moved:
            await plane.turns(1)
        assert busy.relay.up.moved < waiting
        await plane.until(lambda: busy.relay.up.moved == waiting)

    plane.run(scenario())
