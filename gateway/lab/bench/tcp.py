"""``gateway bench tcp``: bulk, new connections, and idle flows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from functools import partial
from typing import Final, Literal

from gateway.lab import peers
from gateway.lab.bench.rig import Clients, Rig, Sample, forwarding, other, this_gateway
from gateway.lab.bench.suite import Metric, Scenario, Sizes, Suite

CONCURRENCY: Final = 50
#: Before each window: windows of TCP grow, and all clients are under way (seconds).
WARM_UP_S: Final = 0.25
START_TIMEOUT_S: Final = 30.0


def suite(*, redirect: bool) -> Suite:
    """All that this machine can compare; ``redirect``: this gateway in that mode, too."""
    modes: tuple[Literal["tproxy", "redirect"], ...] = (
        ("tproxy", "redirect") if redirect else ("tproxy",)
    )
    candidates = (
        forwarding(),
        *(this_gateway(mode) for mode in modes),
        *(other(peer) for peer in peers.installed()),
    )
    bulk = [_bulk(kind, flows) for kind in ("download", "upload") for flows in (1, 8)]
    # Idle flows first, once: what a process has needed it keeps, so only a fresh one tells.
    return Suite("tcp", candidates, (_IDLE, *bulk, _EXCHANGE))


def _window(clients: Clients, seconds: float) -> tuple[Sample, Sample]:
    """What clients that have begun have done at both ends of a window."""
    clients.process.wait_until(
        lambda: _busy(clients.sample()), "the first bytes", START_TIMEOUT_S
    )
    time.sleep(WARM_UP_S)
    first = clients.sample()
    time.sleep(seconds)
    return first, clients.sample()
