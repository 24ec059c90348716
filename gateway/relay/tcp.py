"""Moving bytes between the two legs of a TCP flow.

Each direction starts as a copy through one shared buffer and moves to splice(2)
through a lent pipe once it has carried enough to be worth it; a direction that
falls back to small messages copies again. A flow is one object and two
directions: no task, no transport, no buffer of its own while it is idle.

Invariants, per direction:

- at most one of ``rest`` (copied, not yet written) and ``pipe`` (spliced, not yet
  written) holds bytes, and nothing is read while either does: back-pressure;
- the write side is shut down only once the source has ended *and* all is written;
- a pipe is held only while bytes are in it or a burst is being served;
- ``edges`` is 0 only after the source said it has no more, ``blocked`` is True only
  after the sink took no more: the next edge of that socket undoes it.
"""

from __future__ import annotations

import errno
import os
import socket
from socket import SocketType
from typing import Final, Protocol

from gateway.flow import CloseReason
from gateway.kernel.reactor import ERROR, HANGUP, IN, OUT, READ_HANGUP, UNKNOWN, URGENT, Reactor
from gateway.kernel.sockets import pending_error, reset_on_close
from gateway.kernel.splice import FLAGS, PIPE_BYTES, Pipe, PipePool

BUFFER_BYTES: Final = 256 << 10
#: Copied before a direction turns to splice: where the pipe's cost is won back.
SPLICE_AFTER: Final = 64 << 10
#: A wake-up that moves less than this is a message, not a stream: copy it.
MESSAGE_BYTES: Final = 4 << 10
#: Reads per wake-up and direction, so that one busy flow cannot starve the others.
BUDGET: Final = 8

_READABLE: Final = IN | READ_HANGUP | URGENT | HANGUP | ERROR
#: A read stops short at what comes behind these: the FIN, or the mark of urgent data (tcp(7)).
_TO_END: Final = READ_HANGUP | URGENT
#: With a hang-up alone of these, all that was sent before the FIN is there to be read.
_STOPS: Final = READ_HANGUP | URGENT | ERROR


class _LegFailedError(Exception):
    """A socket of the flow was reset, or failed in a way that ends it all the same."""

    def __init__(self, leg: SocketType) -> None:
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
        "done",
        "edges",
        "ended",
        "moved",
        "pipe",
        "rest",
        "sink",
        "source",
        "splice_at",
    )

    def __init__(self, source: SocketType, sink: SocketType, rest: bytes) -> None:
        self.source = source
        self.sink = sink
        self.rest = rest
        self.moved = 0
        self.splice_at = SPLICE_AFTER
        self.pipe: Pipe | None = None
        self.edges = 0
        self.blocked = False
        self.ended = False
        self.done = False

    @property
    def idle(self) -> bool:
        """Whether only an edge can bring this direction forward."""
        return self.done or self.blocked or not (self.edges or self.rest or self.pipe)

    def note(self, events: int) -> None:
        """Remember what an edge of the source says."""
        self.edges |= events & _READABLE

    def copy_again(self) -> None:
        """Turn from splice to copy, until it has carried enough again."""
        self.splice_at = self.moved + SPLICE_AFTER


class Owner(Protocol):
    """Whose flow a relay carries."""

    def relay_closed(self, reason: CloseReason) -> None:
        """Called once, when both sockets are given up."""


class Relay:
    """A flow with both legs connected, until it closes.

    It is told by its ``owner``, not by a callback: a bound method is an object of its own,
    for as long as the flow lives.
    """

    __slots__ = ("_mover", "_owner", "down", "up")

    def __init__(
        self,
        mover: Mover,
        client: SocketType,
        upstream: SocketType,
        surplus: bytes,
        owner: Owner,
    ) -> None:
        """``surplus``: bytes of the upstream that came with its handshake, for the client."""
        self._mover = mover
        self._owner: Owner | None = owner
        self.up = Direction(client, upstream, b"")
        self.down = Direction(upstream, client, surplus)

    @property
    def closed(self) -> bool:
        """Whether both sockets are given up."""
        return self._owner is None

    @property
    def half_closed(self) -> bool:
        """Whether one direction has ended and the other has not."""
        return self.up.done != self.down.done

    def start(
        self, client_edges: int = UNKNOWN, upstream_edges: int = UNKNOWN, sent: int = 0
    ) -> None:
        """Take over both sockets, which the reactor watches already, and serve what is there.

        ``client_edges``, ``upstream_edges``: what the reactor has told of each, less what was
        read since. ``sent``: the upstream has so many bytes already that the client's socket
        still holds.
        """
        up, down = self.up, self.down
        up.note(client_edges)
        down.note(upstream_edges)
        reactor = self._mover.reactor
        reactor.hand_over(up.source.fileno(), self)
        reactor.hand_over(down.source.fileno(), self)
        try:
            self._skip(sent)
        except OSError:
            self.close(CloseReason.CLIENT_RESET)
            return
        self._serve()

    def on_ready(self, fd: int, events: int) -> None:
        """Note what the edge says, then serve both directions: either may be freed by it."""
        inward, outward = self.up, self.down
        if fd != inward.source.fileno():
            inward, outward = outward, inward
        inward.note(events)
        if events & OUT:
            outward.blocked = False
        self._serve()
        if events & ERROR and not self.closed and pending_error(inward.source):
            # What came before the reset is passed on; the reset itself was not met where nothing
            # may be read now (back-pressure, or read to its end), and no other edge will tell.
            self.close(self._reset_of(inward.source))

    def abort(self) -> None:
        """End the flow with resets."""
        self.close(CloseReason.INTERNAL_ERROR)

    def close(self, reason: CloseReason) -> None:
        """Close both legs: gracefully where all was relayed, with a reset where it was not."""
        owner, self._owner = self._owner, None
        if owner is None:
            return
        for direction in (self.up, self.down):
            self._give_back(direction)
            if reason is not CloseReason.DONE:
                reset_on_close(direction.source)
            self._mover.reactor.close(direction.source)
        owner.relay_closed(reason)

    def _reset_of(self, leg: SocketType) -> CloseReason:
        if leg is self.up.source:
            return CloseReason.CLIENT_RESET
        return CloseReason.UPSTREAM_RESET

    def _skip(self, sent: int) -> None:
        """Take from the client's socket what was sent on while it was only looked at."""
        while self.up.moved < sent:
            self.up.moved += self.up.source.recv_into(self._mover.buffer, sent - self.up.moved)

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
        if way.rest:
            way.rest = way.rest[self._write(way, way.rest) :]
        elif way.pipe is not None:
            self._drain(way, way.pipe)
        self._move(way)
        if way.pipe is not None and not way.pipe.filled:
            self._give_back(way)
            if way.moved - before < MESSAGE_BYTES:
                way.copy_again()
        if way.ended and not way.rest and way.pipe is None:
            self._finish(way)
        elif not way.idle:
            self._mover.reactor.again(self.up.source.fileno())

    def _move(self, way: Direction) -> None:
        """Read and write until the source is drained, the sink is full or the budget spent."""
        for _ in range(BUDGET):
            if not way.edges or way.blocked:
                return
            if way.moved >= way.splice_at and (pipe := self._pipe(way)):
                self._splice(way, pipe)
            else:
                self._copy(way)

    def _copy(self, way: Direction) -> None:
        try:
            count = way.source.recv_into(self._mover.buffer)
        except BlockingIOError:
            way.edges = 0
            return
        except OSError as error:
            raise _LegFailedError(way.source) from error
        if not count:
            way.ended = True
            way.edges = 0
            return
        if count < BUFFER_BYTES:
            # A short read has drained the source (epoll(7), on edges), up to its FIN where that is
            # there, with these exceptions.
            if way.edges & _STOPS == READ_HANGUP:
                way.ended = True
                way.edges = 0
            elif not way.edges & _TO_END:
                way.edges = 0
        view = self._mover.view
        # The last data waits for the shutdown that follows at once: both leave in one packet.
        sent = self._write(way, view[:count], socket.MSG_MORE if way.ended else 0)
        if sent < count:
            way.rest = bytes(view[sent:count])

    def _splice(self, way: Direction, pipe: Pipe) -> None:
        try:
            # No short cut on a short count here: the pipe may have been full.
            count = os.splice(way.source.fileno(), pipe.writer, PIPE_BYTES, flags=FLAGS)
        except BlockingIOError:
            # The pipe is empty here, so it is the source that has nothing, or stands before the
            # mark of urgent data, which only recv(2) gets past.
            if way.edges & _TO_END:
                way.copy_again()
            else:
                way.edges = 0
            return
        except OSError as error:
            raise _LegFailedError(way.source) from error
        if count:
            pipe.filled = count
            self._drain(way, pipe)
        else:
            way.ended = True
            way.edges = 0

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

    def _drain(self, way: Direction, pipe: Pipe) -> None:
        while pipe.filled:
            try:
                count = os.splice(pipe.reader, way.sink.fileno(), pipe.filled, flags=FLAGS)
            except BlockingIOError:
                way.blocked = True
                return
            except OSError as error:
                raise _LegFailedError(way.sink) from error
            pipe.filled -= count
            way.moved += count

    def _pipe(self, way: Direction) -> Pipe | None:
        if way.pipe is None:
            way.pipe = self._mover.pipes.acquire()
        return way.pipe

    def _give_back(self, way: Direction) -> None:
        if way.pipe is not None:
            self._mover.pipes.release(way.pipe)
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
