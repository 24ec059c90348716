"""An edge-triggered epoll instance nested in the asyncio loop (epoll(7)).

The data plane's sockets live here, without transports, streams or tasks; asyncio
keeps timers, control and everything that is not per byte. One wake-up of the
loop serves every socket that is ready.
"""

from __future__ import annotations

import asyncio
import logging
import select
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)

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
    """Watches file descriptors, each once for its whole life."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        #: By descriptor. Those are small numbers, so a list takes a fraction of a dict.
        self._watchers: list[Watcher | None] = []
        self._again: dict[int, None] = {}  # a set that keeps the order of asking
        self._closing: list[Closable] = []
        self._in_batch = False
        loop.add_reader(self._epoll.fileno(), self._serve)

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
        if not self._again:
            self._loop.call_soon(self._serve_again)
        self._again[fd] = None

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

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call once, after ``delay_s`` seconds. For what is rare: the loop keeps each in a heap."""
        return self._loop.call_later(delay_s, callback)

    def stop(self) -> None:
        """Leave the loop. Sockets that are still watched stay open: they are their owners'."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._watchers.clear()

    def _serve(self) -> None:
        self._dispatch(self._epoll.poll(0, _BATCH))

    def _serve_again(self) -> None:
        fds, self._again = self._again, {}
        self._dispatch([(fd, 0) for fd in fds])

    def _dispatch(self, events: list[tuple[int, int]]) -> None:
        watchers = self._watchers
        self._in_batch = True
        for fd, bits in events:
            watcher = watchers[fd]
            if watcher is None:
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

    @staticmethod
    def _abort(watcher: Watcher) -> None:
        try:
            watcher.abort()
        except Exception:
            # The rest of the batch must be served: its edges will not be told again.
            log.exception("bug: nor could it be ended")
