"""Children that a terminal's Ctrl-C does not end: it reaches every process of its group at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def undisturbed() -> Iterator[None]:
    """What is started inside is never interrupted: that is ours alone, who end it in order.

    Blocked signals stay blocked across fork(2) and execve(2) (signal(7)). A group of its own
    would do as well, but for the moment before the child has it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        # Several tasks may be in here at a time, and leave in any order.
        if signal.SIGINT not in before:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
