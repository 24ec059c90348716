from __future__ import annotations

import asyncio
import signal

import pytest

from gateway.signals import set_by


def blocked() -> set[int]:
    return {*signal.pthread_sigmask(signal.SIG_BLOCK, ())}


async def interrupted(*, refused: bool) -> bool:
    event = asyncio.Event()
    with set_by({signal.SIGUSR1: event}):
        signal.raise_signal(signal.SIGUSR1)
        await event.wait()
        if refused:
            raise ValueError("refused")
    return event.is_set()


def test_after_a_regular_end_nothing_is_heard_any_more() -> None:
    before = blocked()
    try:
        assert asyncio.run(interrupted(refused=False))
        assert blocked() == {*before, signal.SIGUSR1}
        signal.raise_signal(signal.SIGUSR1)  # it would end the process
        signal.sigtimedwait([signal.SIGUSR1], 0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_who_is_refused_lets_go_of_them() -> None:
    before = blocked()
    with pytest.raises(ValueError, match="refused"):
        asyncio.run(interrupted(refused=True))
    assert blocked() == before
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
