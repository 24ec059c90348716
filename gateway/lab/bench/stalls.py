"""How long work in a thread keeps everything else in its process from running."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

#: What runs beside the work looks at the clock so often (seconds): as flows do, it sleeps between.
_PERIOD_S: Final = 0.0005


def longest_stall_s(work: Callable[[], object]) -> float:
    """Of the thread that calls this, while another one works.

    Counted in CPU of this process: what other processes have taken meanwhile is not in it.
    """
    worker = threading.Thread(target=work)
    worker.start()
    longest_s, last_s = 0.0, time.process_time()
    working = True
    while working:
        time.sleep(_PERIOD_S)
        working = worker.is_alive()
        now_s = time.process_time()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    return longest_s
