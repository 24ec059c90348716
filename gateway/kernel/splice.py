"""Pipes for splice(2): the kernel's hands between two sockets.

A pipe of 1 MiB halves the CPU of a copy; the default of 64 KiB saves nothing. A
pipe is lent to a direction only while bytes flow, so idle flows hold none.
"""

from __future__ import annotations

import fcntl
import os

from gateway.kernel.limits import require_for_flow

PIPE_BYTES = 1 << 20
_KEEP = 64
#: Below this a pipe costs more wake-ups than a copy: the kernel hands out 8 KiB ones when
#: a user's quota is spent (pipe(7), /proc/sys/fs/pipe-user-pages-soft).
_USEFUL_BYTES = 256 << 10

FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Pipe:
    """A non-blocking pipe: read end, write end, and how many bytes its user left inside."""

    __slots__ = ("filled", "reader", "writer")

    def __init__(self) -> None:
        """Raise ``OSError`` where descriptors or pipe pages have run out."""
        self.filled = 0
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            require_for_flow(max(self.reader, self.writer))
            self._grow()
        except OSError:
            self.close()
            raise

    def _grow(self) -> None:
        try:
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            if fcntl.fcntl(self.writer, fcntl.F_GETPIPE_SZ) < _USEFUL_BYTES:
                raise

    def close(self) -> None:
        """Close both ends; what is inside is lost."""
        os.close(self.reader)
        os.close(self.writer)


class PipePool:
    """Empty pipes, ready to be lent."""

    def __init__(self) -> None:
        self._free: list[Pipe] = []
        self.lent = 0

    def acquire(self) -> Pipe | None:
        """A pipe, or None where there is none to be had: the caller copies instead."""
        try:
            pipe = self._free.pop() if self._free else Pipe()
        except OSError:
            return None
        self.lent += 1
        return pipe

    def release(self, pipe: Pipe) -> None:
        """Take a pipe back; one with bytes inside is closed, never lent again."""
        self.lent -= 1
        if not pipe.filled and len(self._free) < _KEEP:
            self._free.append(pipe)
        else:
            pipe.close()

    def close(self) -> None:
        """Close every free pipe."""
        while self._free:
            self._free.pop().close()
