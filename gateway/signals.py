"""Signals as events of the loop (signal(7))."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def set_by(told: Mapping[signal.Signals, asyncio.Event]) -> Iterator[None]:
    """Have these signals set their events. At a regular end they are blocked for good.

    All is done then, and the process ends: asyncio closes the pipe that it is told of signals by
    before it lets go of them, and what came between would be a traceback.
    """
    loop = asyncio.get_running_loop()
    for number, event in told.items():
        loop.add_signal_handler(number, event.set)
    yield
    signal.pthread_sigmask(signal.SIG_BLOCK, told)
