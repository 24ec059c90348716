"""Edge-triggered sockets in the epoll instance of the asyncio loop itself (epoll(7)).

The data plane's sockets live here, without transports, streams or tasks; asyncio
keeps timers, control and everything that is not per byte. One wake-up of the
loop serves every socket that is ready, before asyncio does anything: what an idle
gateway is woken for is answered by code that the processor has forgotten, so that
each step between the kernel and a flow is felt.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import select
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

IN = select.EPOLLIN
OUT = select.EPOLLOUT
READ_HANGUP = select.EPOLLRDHUP
HANGUP = select.EPOLLHUP
ERROR = select.EPOLLERR
URGENT = select.EPOLLPRI

#: Edges that were not noted: anything may have happened, so a first read goes to the end.
UNKNOWN = IN | READ_HANGUP | URGENT

_EVENTS = IN | OUT | READ_HANGUP | URGENT | select.EPOLLET
_BATCH = 256


class Closable(Protocol):
    """What has a descriptor: a socket, or a device."""

    def fileno(self) -> int:
        """The descriptor; negative once it is closed."""

    def close(self) -> None:
        """Close it."""


class Watcher(Protocol):
    """What the reactor calls.

    ``on_ready`` may be called without cause (an edge that was already consumed), so
    it must bear ``BlockingIOError``. It is called once per edge: whoever stops
    before the socket is drained asks for ``Reactor.again``.
    """

    def on_ready(self, fd: int, events: int) -> None:
        """Serve ``fd``; ``events`` are EPOLL* bits, 0 for a call that ``again`` asked for."""

    def abort(self) -> None:
        """End now: ``on_ready`` raised, which is a bug; no other flow may suffer from it."""


class Reactor:
    """Watches file descriptors, each once for its whole life. ``FlowLoop`` has one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, epoll: select.epoll) -> None:
        self._loop = loop
        self._epoll = epoll
        #: By descriptor. Those are small numbers, so a list takes a fraction of a dict.
        self._watchers: list[Watcher | None] = []
        #: Who is to be called once more: a set that keeps the order of asking.
        self.repeats: dict[int, None] = {}
        self._closing: list[Closable] = []
        self._in_batch = False

    def watch(self, fd: int, watcher: Watcher) -> None:
        """Call ``watcher`` for every edge of ``fd`` from now on."""
        missing = fd + 1 - len(self._watchers)
        if missing > 0:
            self._watchers.extend([None] * missing)
        self._watchers[fd] = watcher
        self._epoll.register(fd, _EVENTS)

    def hand_over(self, fd: int, watcher: Watcher) -> None:
        """Give a watched ``fd`` to another watcher; edges seen so far are not repeated."""
        self._watchers[fd] = watcher

    def again(self, fd: int) -> None:
        """Call the watcher of ``fd`` once more, behind everything that is ready now.

        However often it was asked for: calls that multiplied would starve the others.
        """
        self.repeats[fd] = None

    def close(self, sock: Closable) -> None:
        """Forget and close a socket.

        Within a batch the descriptor itself is closed at the batch's end: its number
        must not be reused while an event for the old socket may still be in the batch.
        """
        fd = sock.fileno()
        if 0 <= fd < len(self._watchers):
            self._watchers[fd] = None
        if self._in_batch:
            self._closing.append(sock)
        else:
            sock.close()

    def release(self, sock: Closable) -> None:
        """Forget a watched socket, and leave it open: somebody else goes on with it."""
        fd = sock.fileno()
        self._watchers[fd] = None
        self._epoll.unregister(fd)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call once, after ``delay_s`` seconds. For what is rare: the loop keeps each in a heap."""
        return self._loop.call_later(delay_s, callback)

    def serve(self, events: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Call the watchers of a batch, then who is to be called again; the events of others."""
        watchers = self._watchers
        known = len(watchers)
        strangers: list[tuple[int, int]] = []
        if self.repeats:
            events += [(fd, 0) for fd in self.repeats]
            self.repeats = {}
        self._in_batch = True
        for event in events:
            fd, bits = event
            watcher = watchers[fd] if fd < known else None
            if watcher is None:
                strangers.append(event)
                continue
            try:
                watcher.on_ready(fd, bits)
            except Exception:
                log.exception("bug: a watcher failed; its flow is ended")
                self._abort(watcher)
        self._in_batch = False
        if self._closing:
            for sock in self._closing:
                sock.close()
            self._closing.clear()
        return strangers

    @staticmethod
    def _abort(watcher: Watcher) -> None:
        try:
            watcher.abort()
        except Exception:
            # The rest of the batch must be served: its edges will not be told again.
            log.exception("bug: nor could it be ended")


class _Selector(selectors.EpollSelector):
    """asyncio's own, in whose epoll instance a reactor has its descriptors too."""

    def __init__(self) -> None:
        super().__init__()
        self.epoll = select.epoll.fromfd(os.dup(self.fileno()))
        self.reactor: Reactor

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait (seconds; None: for ever), serve the reactor's, and return asyncio's."""
        reactor = self.reactor
        if reactor.repeats:
            wait = 0.0
        elif timeout is None:
            wait = -1.0
        else:
            # epoll counts milliseconds; a timer must not be looked for before its time.
            wait = max(0, math.ceil(timeout * 1e3)) * 1e-3
        strangers = reactor.serve(self.epoll.poll(wait, _BATCH))
        if reactor.repeats:
            # What one batch has sent may be answered already: before a turn of the loop.
            strangers += reactor.serve(self.epoll.poll(0, _BATCH))
        if not strangers:
            return []
        keys = self.get_map()
        return [(key, _asked(bits) & key.events) for fd, bits in strangers if (key := keys.get(fd))]

    def close(self) -> None:
        """Close the instance. Sockets that are still watched stay open: they are their owners'."""
        self.epoll.close()
        super().close()


def _asked(bits: int) -> int:
    """Events in the terms of ``selectors``: an error or an end is told to whoever asks."""
    reading = selectors.EVENT_READ if bits & ~OUT else 0
    return reading | (selectors.EVENT_WRITE if bits & ~IN else 0)


class FlowLoop(asyncio.SelectorEventLoop):
    """An asyncio loop with a reactor."""

    def __init__(self) -> None:
        selector = _Selector()
        super().__init__(selector)
        self.reactor = selector.reactor = Reactor(self, selector.epoll)


def running_reactor() -> Reactor:
    """That of the loop that is running, which must be a ``FlowLoop``."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, FlowLoop):
        raise TypeError("flows are served by a FlowLoop: see gateway.kernel.reactor.run")
    return loop.reactor


def run(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` on a loop with a reactor."""
    with asyncio.Runner(loop_factory=FlowLoop) as runner:
        return runner.run(main)
