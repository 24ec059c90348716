"""Keeps short what flows wait for inside a process that carries them."""

from __future__ import annotations

import gc
import sys
from typing import Final

#: For so long a thread may keep the interpreter from the event loop's (seconds): those that
#: keep the kernel's state true, and look at lists.
SWITCH_S: Final = 0.0005


def shorten_pauses() -> None:
    """Call once, when all is loaded that will stay.

    What is there by then (code, the policy, the plan) is left out of every later look of the
    garbage collector, which holds everything up: tens of milliseconds become a few.
    """
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()
