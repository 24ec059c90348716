"""How many connections to a SOCKS server should be ready before a flow needs them."""

from __future__ import annotations

import math
from typing import Final

#: At most so many, for each upstream and process.
MAX_SIZE: Final = 32
#: Where one is made ready sooner (seconds), to have it before costs processor time and gains
#: nothing.
WORTH_S: Final = 0.005
#: A flow counts towards the rate by how recent it is: to 1/e after this (seconds).
MEMORY_S: Final = 1.0
#: The shortest time of this and the last period (seconds) is what one takes: what a busy
#: processor adds is no wait that could be saved.
PERIOD_S: Final = 10.0
#: Wanted for each flow that is expected while one is made ready: flows do not come evenly.
MARGIN: Final = 2.0


class Demand:
    """The rate of flows, and the time to make a connection ready; ``now`` is any steady clock."""

    __slots__ = ("_counted", "_last_took", "_period", "_rate", "_took")

    def __init__(self) -> None:
        self._rate = 0.0
        self._counted = 0.0
        self._took = math.inf
        self._last_took = math.inf
        self._period = -math.inf

    def flow(self, now: float) -> None:
        """Count a flow."""
        self._rate = self._rate_at(now) + 1 / MEMORY_S
        self._counted = now

    def took(self, seconds: float, now: float) -> None:
        """Learn how long it took until the server had accepted a connection."""
        if now - self._period > PERIOD_S:
            self._period, self._last_took, self._took = now, self._took, math.inf
        self._took = min(self._took, seconds)

    def forget(self) -> None:
        """Want none until the server has accepted another one: it has let one down."""
        self._took = self._last_took = math.inf

    def size(self, now: float) -> int:
        """How many are wanted."""
        took = min(self._took, self._last_took)
        if not WORTH_S <= took < math.inf:
            return 0
        return min(MAX_SIZE, math.ceil(MARGIN * took * self._rate_at(now)))

    def _rate_at(self, now: float) -> float:
        """Flows a second."""
        return self._rate * math.exp((self._counted - now) / MEMORY_S)
