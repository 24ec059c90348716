"""Children that a terminal's Ctrl-C does not end."""

from __future__ import annotations

import os
import signal
import subprocess

from gateway.kernel.children import undisturbed


def blocked() -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_an_interrupt_ends_no_child_that_was_started_inside() -> None:
    with undisturbed():
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    os.kill(child.pid, signal.SIGINT)
    said, _ = child.communicate(b"still there", timeout=10)
    assert (said, child.returncode) == (b"still there", 0)
    assert not blocked()


def test_those_who_start_children_side_by_side_leave_nothing_blocked() -> None:
    one, other = undisturbed(), undisturbed()
    one.__enter__()
    other.__enter__()
    assert blocked()
    one.__exit__(None, None, None)
    other.__exit__(None, None, None)
    assert not blocked()
