"""Moving bytes between the two legs of a TCP flow.

Each direction starts as a copy through one shared buffer and moves to splice(2)
through a lent pipe once it has carried enough to be worth it; a direction that
falls back to small messages copies again. A flow is one object and two
directions: no task, no transport, no buffer of its own while it is idle.

Invariants, per direction:

- at most one of ``rest`` (copied, not yet written) and ``piped`` (spliced, not
  yet written) is non-empty, and nothing is read while either is: back-pressure;
- the write side is shut down only once the source has ended *and* all is written;
- a pipe is held only while bytes are in it or a burst is being served;
- ``readable`` is False only after the source said it has no more, ``blocked`` is
  True only after the sink took no more: the next edge of that socket undoes it.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Final

from gateway.flow import CloseReason
from gateway.kernel.reactor import ERROR, HANGUP, IN, OUT, READ_HANGUP, URGENT, Reactor
from gateway.kernel.sockets import pending_error, reset_on_close
from gateway.kernel.splice import FLAGS, PIPE_BYTES, Pipe, PipePool

BUFFER_BYTES: Final = 256 << 10
#: Copied before a direction turns to splice: where the pipe's cost is won back.
SPLICE_AFTER: Final = 64 << 10
#: A wake-up that moves less than this is a message, not a stream: copy it.
MESSAGE_BYTES: Final = 4 << 10
#: Reads per wake-up and direction, so that one busy flow cannot starve the others.
BUDGET: Final = 8

_READABLE: Final = IN | READ_HANGUP | HANGUP | ERROR
#: A read stops short at what comes behind these: the FIN, or the mark of urgent data (tcp(7)).
_TO_END: Final = READ_HANGUP | URGENT
#: With a hang-up alone of these, all that was sent before the FIN is there to be read.
_STOPS: Final = READ_HANGUP | URGENT | ERROR
#: Edges that were not noted: anything may have happened, so a first read goes to the end.
UNKNOWN: Final = IN | _TO_END


class _LegFailedError(Exception):
    """A socket of the flow was reset, or failed in a way that ends it all the same."""

    def __init__(self, leg: socket.socket) -> None:
        super().__init__()
        self.leg = leg


class Mover:
    """What all relays of a process share: reactor, buffer and pipes."""

    __slots__ = ("buffer", "pipes", "reactor", "view")

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.pipes = PipePool()
        self.buffer = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.buffer)


class Direction:
    """One way of a flow: from ``source`` to ``sink``."""

    __slots__ = (
        "blocked",
        "copied",
        "done",
        "ended",
        "fin",
        "moved",
        "pipe",
        "piped",
        "readable",
        "rest",
        "sink",
        "source",
        "to_end",
    )

    def __init__(self, source: socket.socket, sink: socket.socket, rest: bytes) -> None:
        self.source = source
        self.sink = sink
        self.rest = rest
        self.moved = 0
        self.copied = 0
        self.pipe: Pipe | None = None
        self.piped = 0
        self.readable = False
        self.blocked = False
        self.to_end = False
        self.fin = False
        self.ended = False
        self.done = False

    @property
    def idle(self) -> bool:
        """Whether only an edge can bring this direction forward."""
        return self.done or self.blocked or not (self.readable or self.rest or self.piped)

    def note(self, events: int) -> None:
        """Remember what an edge of the source says."""
        if events & _READABLE:
            self.readable = True
            if events & _TO_END:
                self.to_end = True
                self.fin = events & _STOPS == READ_HANGUP


class Relay:
    """A flow with both legs connected, until it closes.

    ``on_closed`` is called once, when both sockets are given up.
    """

    __slots__ = ("_client", "_mover", "_on_closed", "_upstream", "closed", "down", "up")

    def __init__(
        self,
        mover: Mover,
        client: socket.socket,
        upstream: socket.socket,
        surplus: bytes,
        on_closed: Callable[[CloseReason], None],
    ) -> None:
        """``surplus``: bytes of the upstream that came with its handshake, for the client."""
        self._mover = mover
        self._client = client
        self._upstream = upstream
        self._on_closed = on_closed
        self.up = Direction(client, upstream, b"")
        self.down = Direction(upstream, client, surplus)
        self.closed = False

    @property
    def half_closed(self) -> bool:
        """Whether one direction has ended and the other has not."""
        return self.up.done != self.down.done

    def start(self, client_edges: int = UNKNOWN, sent: int = 0) -> None:
        """Take over both sockets, which the reactor watches already, and serve what is there.

        ``client_edges``: all that the reactor has told of the client so far. ``sent``: the
        upstream has so many bytes already that the client's socket still holds.
        """
        self.up.note(client_edges)
        self.down.note(UNKNOWN)
        reactor = self._mover.reactor
        reactor.hand_over(self._client.fileno(), self)
        reactor.hand_over(self._upstream.fileno(), self)
        try:
            self._skip(sent)
        except OSError:
            self.close(CloseReason.CLIENT_RESET)
            return
        self._serve()

    def on_ready(self, fd: int, events: int) -> None:
        """Note what the edge says, then serve both directions: either may be freed by it."""
        if fd == self._client.fileno():
            leg, inward, outward = self._client, self.up, self.down
        else:
            leg, inward, outward = self._upstream, self.down, self.up
        inward.note(events)
        if events & OUT:
            outward.blocked = False
        self._serve()
        if events & ERROR and not self.closed and pending_error(leg):
            # What came before the reset is passed on; the reset itself was not met where nothing
            # may be read now (back-pressure, or read to its end), and no other edge will tell.
            self.close(self._reset_of(leg))

    def abort(self) -> None:
        """End the flow with resets."""
        self.close(CloseReason.INTERNAL_ERROR)

    def close(self, reason: CloseReason) -> None:
        """Close both legs: gracefully where all was relayed, with a reset where it was not."""
        if self.closed:
            return
        self.closed = True
        for direction in (self.up, self.down):
            self._give_back(direction)
        for sock in (self._client, self._upstream):
            if reason is not CloseReason.DONE:
                reset_on_close(sock)
            self._mover.reactor.close(sock)
        self._on_closed(reason)

    def _reset_of(self, leg: socket.socket) -> CloseReason:
        if leg is self._client:
            return CloseReason.CLIENT_RESET
        return CloseReason.UPSTREAM_RESET

    def _skip(self, sent: int) -> None:
        """Take from the client's socket what was sent on while it was only looked at."""
        while self.up.moved < sent:
            self.up.moved += self._client.recv_into(self._mover.buffer, sent - self.up.moved)

    def _serve(self) -> None:
        try:
            if not self.down.idle:
                self._pump(self.down)
            if not self.up.idle:
                self._pump(self.up)
        except _LegFailedError as failure:
            self.close(self._reset_of(failure.leg))
            return
        if self.up.done and self.down.done:
            self.close(CloseReason.DONE)

    def _pump(self, way: Direction) -> None:
        before = way.moved
        self._flush(way)
        self._move(way)
        if way.pipe is not None and not way.piped:
            self._give_back(way)
            if way.moved - before < MESSAGE_BYTES:
                way.copied = 0
        if way.ended and not way.rest and not way.piped:
            self._finish(way)
        elif not way.idle:
            self._mover.reactor.again(self._client.fileno())

    def _flush(self, way: Direction) -> None:
        """Write what was read before."""
        if way.rest:
            way.rest = way.rest[self._write(way, way.rest) :]
        elif way.piped:
            self._drain_pipe(way)

    def _move(self, way: Direction) -> None:
        """Read and write until the source is drained, the sink is full or the budget spent."""
        for _ in range(BUDGET):
            if not way.readable or way.blocked:
                return
            if way.copied < SPLICE_AFTER or not self._has_pipe(way):
                self._copy(way)
            else:
                self._splice(way)

    def _copy(self, way: Direction) -> None:
        try:
            count = way.source.recv_into(self._mover.buffer)
        except BlockingIOError:
            way.readable = way.to_end = False
            return
        except OSError as error:
            raise _LegFailedError(way.source) from error
        if not count:
            way.ended = True
            way.readable = False
            return
        if count < BUFFER_BYTES:
            # A short read has drained the source (epoll(7), on edges), up to its FIN where that is
            # there, with these exceptions.
            way.ended = way.fin
            way.readable = way.to_end and not way.fin
        view = self._mover.view
        # The last data waits for the shutdown that follows at once: both leave in one packet.
        sent = self._write(way, view[:count], socket.MSG_MORE if way.ended else 0)
        way.copied += count
        if sent < count:
            way.rest = bytes(view[sent:count])

    def _splice(self, way: Direction) -> None:
        assert way.pipe is not None
        try:
            # No short cut on a short count here: the pipe may have been full.
            count = os.splice(way.source.fileno(), way.pipe.writer, PIPE_BYTES, flags=FLAGS)
        except BlockingIOError:
            # The pipe is empty here, so it is the source that has nothing, or stands before the
            # mark of urgent data, which only recv(2) gets past.
            if way.to_end:
                way.copied = 0
            else:
                way.readable = False
            return
        except OSError as error:
            raise _LegFailedError(way.source) from error
        if count:
            way.piped = count
            self._drain_pipe(way)
        else:
            way.ended = True
            way.readable = False

    def _write(self, way: Direction, data: bytes | memoryview, flags: int = 0) -> int:
        try:
            sent = way.sink.send(data, flags)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise _LegFailedError(way.sink) from error
        way.moved += sent
        way.blocked = sent < len(data)
        return sent

    def _drain_pipe(self, way: Direction) -> None:
        assert way.pipe is not None
        while way.piped:
            try:
                count = os.splice(way.pipe.reader, way.sink.fileno(), way.piped, flags=FLAGS)
            except BlockingIOError:
                way.blocked = True
                return
            except OSError as error:
                raise _LegFailedError(way.sink) from error
            way.piped -= count
            way.moved += count

    def _has_pipe(self, way: Direction) -> bool:
        if way.pipe is None:
            way.pipe = self._mover.pipes.acquire()
        return way.pipe is not None

    def _give_back(self, way: Direction) -> None:
        if way.pipe is not None:
            self._mover.pipes.release(way.pipe, empty=not way.piped)
            way.pipe = None

    def _finish(self, way: Direction) -> None:
        way.done = True
        if self.up.done and self.down.done:
            return  # close(2) follows, and ends this direction too
        try:
            way.sink.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # reset meanwhile: an edge of its own tells
                raise _LegFailedError(way.sink) from error
