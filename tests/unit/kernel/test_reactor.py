"""The reactor: edges, ``again``, closing within a batch, and watchers that fail."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable

import pytest

from gateway.kernel.reactor import HANGUP, IN, OUT, READ_HANGUP, Reactor, run, running_reactor


class Recorder:
    """A watcher that notes its calls, and then does what the test wants."""

    def __init__(self, then: Callable[[int, int], None] = lambda *_: None) -> None:
        self.calls: list[tuple[int, int]] = []
        self.aborted = 0
        self._then = then

    def on_ready(self, fd, events):
        self.calls.append((fd, events))
        self._then(fd, events)

    def abort(self):
        self.aborted += 1


def test_edges_come_once_until_the_next(plane):
    near, far = plane.pair()
    seen = Recorder()
    plane.reactor.watch(near.fileno(), seen)

    async def scenario():
        await plane.until(lambda: seen.calls)
        assert seen.calls == [(near.fileno(), OUT)]
        far.send(b"a")
        await plane.until(lambda: len(seen.calls) == 2)
        assert seen.calls[1][1] & IN
        await plane.turns()
        assert len(seen.calls) == 2, "an edge that was told is not told again, even if unread"
        far.send(b"b")
        await plane.until(lambda: len(seen.calls) == 3)
        far.shutdown(socket.SHUT_WR)
        await plane.until(lambda: seen.calls[-1][1] & READ_HANGUP)
        assert not seen.calls[-1][1] & HANGUP, "a half-close is not a hang-up"

    plane.run(scenario())


def test_again_calls_once_however_often_it_was_asked(plane):
    near, _far = plane.pair()
    seen = Recorder()
    plane.reactor.watch(near.fileno(), seen)

    async def scenario():
        await plane.until(lambda: seen.calls)
        for _ in range(5):
            plane.reactor.again(near.fileno())
        await plane.turns()
        assert seen.calls[1:] == [(near.fileno(), 0)]

    plane.run(scenario())


def test_again_from_within_is_served_after_others(plane):
    """A watcher that always asks again does not keep another one from being served."""
    busy_near, _busy_far = plane.pair()
    calm_near, calm_far = plane.pair()
    busy = Recorder(lambda fd, _: plane.reactor.again(fd))
    calm = Recorder()
    plane.reactor.watch(busy_near.fileno(), busy)
    plane.reactor.watch(calm_near.fileno(), calm)

    async def scenario():
        await plane.until(lambda: len(busy.calls) > 3)
        calm_far.send(b"x")
        await plane.until(lambda: calm.calls[-1][1] & IN)
        before = len(busy.calls)
        await plane.turns(10)
        assert 0 < len(busy.calls) - before <= 22, "twice a turn, not more"

    plane.run(scenario())


def test_again_for_a_closed_socket_is_forgotten(plane):
    near, _far = plane.pair()
    seen = Recorder()
    plane.reactor.watch(near.fileno(), seen)

    async def scenario():
        await plane.until(lambda: seen.calls)
        plane.reactor.again(near.fileno())
        plane.reactor.close(near)
        await plane.turns()
        assert len(seen.calls) == 1

    plane.run(scenario())
    assert near.fileno() == -1


def test_no_descriptor_is_reused_within_a_batch(plane):
    """Two sockets are ready at once; the first one's watcher closes the other and opens more."""
    pairs = [plane.pair() for _ in range(2)]
    fds = {near.fileno(): near for near, _ in pairs}
    opened: list[socket.socket] = []
    closed: list[int] = []
    fresh = Recorder()

    def close_the_other(fd: int, events: int) -> None:
        if opened or not events & IN:
            return
        other = next(sock for number, sock in fds.items() if number != fd)
        number = other.fileno()
        plane.reactor.close(other)
        while not opened or opened[-1].fileno() < number:
            opened.append(plane.own(socket.socket()))
        closed.append(number)
        plane.reactor.watch(opened[0].fileno(), fresh)

    watcher = Recorder(close_the_other)

    async def scenario():
        for near in fds.values():
            plane.reactor.watch(near.fileno(), watcher)
        await plane.until(lambda: len(watcher.calls) == 2)
        for _, far in pairs:
            far.send(b"x")
        await plane.until(lambda: opened)
        await plane.turns()

    plane.run(scenario())
    assert closed[0] not in {sock.fileno() for sock in opened}
    assert sum(1 for _, events in watcher.calls if events & IN) == 1
    assert [near.fileno() for near, _ in pairs].count(-1) == 1, "closed at the end of the batch"


def test_a_closed_number_may_be_used_again_after_the_batch(plane):
    near, _far = plane.pair()
    other, peer = plane.pair()
    number = near.fileno()
    seen = Recorder()

    async def scenario():
        plane.reactor.watch(number, Recorder(lambda *_: plane.reactor.close(near)))
        await plane.until(lambda: near.fileno() == -1)
        reborn = plane.own(socket.socket(fileno=os.dup2(other.fileno(), number)))
        plane.reactor.watch(number, seen)
        peer.send(b"x")
        await plane.until(lambda: seen.calls and seen.calls[-1][1] & IN)
        plane.reactor.close(reborn)

    plane.run(scenario())


def test_a_watcher_that_raises_ends_its_own_flow_only(plane, caplog):
    def fail(fd: int, events: int) -> None:
        raise RuntimeError("on purpose")

    pairs = [plane.pair() for _ in range(3)]
    bad, good = Recorder(fail), Recorder()

    async def scenario():
        for (near, _), watcher in zip(pairs, (good, bad, good), strict=True):
            plane.reactor.watch(near.fileno(), watcher)
        await plane.until(lambda: len(good.calls) == 2 and bad.aborted)

    with caplog.at_level(logging.CRITICAL):
        plane.run(scenario())
    assert bad.aborted == 1


def test_a_watcher_whose_abort_raises_too_costs_the_batch_nothing(plane, caplog):
    class Hopeless(Recorder):
        def abort(self):
            super().abort()
            raise RuntimeError("on purpose, again")

    def fail(fd: int, events: int) -> None:
        raise RuntimeError("on purpose")

    pairs = [plane.pair() for _ in range(3)]
    bad, good = Hopeless(fail), Recorder()
    last = pairs[2][0]

    async def scenario():
        for (near, _), watcher in zip(pairs, (bad, good, good), strict=True):
            plane.reactor.watch(near.fileno(), watcher)
        await plane.until(lambda: len(good.calls) == 2)
        plane.reactor.close(last)
        assert last.fileno() == -1, "no batch is being served: closed at once"

    with caplog.at_level(logging.CRITICAL):
        plane.run(scenario())
    assert bad.aborted == 1


def test_more_events_than_a_batch_are_all_served(plane):
    server, where = plane.server()
    seen = Recorder()

    async def scenario():
        for _ in range(300):
            near = plane.dial(where)
            await plane.accept(server)
            plane.reactor.watch(near.fileno(), seen)
        await plane.until(lambda: len(seen.calls) >= 300)

    plane.run(scenario())
    assert len({fd for fd, _ in seen.calls}) == 300


def test_who_is_released_is_another_s_to_read(plane):
    near, far = plane.pair()
    seen = Recorder()
    taken = []

    async def scenario():
        plane.reactor.watch(near.fileno(), seen)
        plane.reactor.again(near.fileno())
        plane.reactor.release(near)
        plane.loop.add_reader(near, lambda: taken.append(near.recv(1)))
        far.send(b"x")
        await plane.until(lambda: taken)
        plane.loop.remove_reader(near)

    plane.run(scenario())
    assert taken == [b"x"]
    assert not seen.calls


def test_asyncio_is_served_beside_flows_that_are_never_done(plane):
    """Who asks again for ever holds up neither timers, nor callbacks, nor other descriptors."""
    busy, _far = plane.pair()
    mine, theirs = plane.pair()
    plane.reactor.watch(busy.fileno(), Recorder(lambda fd, _: plane.reactor.again(fd)))

    async def scenario():
        loop = asyncio.get_running_loop()
        theirs.send(b"x")
        assert await loop.sock_recv(mine, 1) == b"x"
        await asyncio.sleep(0.001)
        assert await asyncio.to_thread(lambda: 7) == 7

    plane.run(scenario())


def test_only_a_loop_with_a_reactor_serves_flows():
    async def scenario():
        return running_reactor()

    assert isinstance(run(scenario()), Reactor)
    with pytest.raises(TypeError, match="FlowLoop"):
        asyncio.run(scenario())
