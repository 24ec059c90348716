"""How much ICMP there may be."""

from __future__ import annotations

from typing import Final, NamedTuple


class EchoSettings(NamedTuple):
    """Bounds on echo, of this process.

    ``timeout``: a flow on which nothing moves is ended (seconds). ``flows``: at most so many,
    overall and for one device. ``rate``: requests a second, likewise. ``pretend``: the gateway
    itself answers what an outbound cannot carry.
    """

    timeout: float
    flows: int
    flows_per_device: int
    rate: int
    rate_per_device: int
    pretend: bool = False


UNBOUNDED: Final = EchoSettings(3600.0, 1 << 20, 1 << 20, 1 << 30, 1 << 30)


class Rate:
    """Counts what each device and all of them have sent within the running second."""

    def __init__(self) -> None:
        self._second = 0
        self._all = 0
        self._of: dict[str, int] = {}

    def allows(self, device: str, most: int, most_per_device: int, now: float) -> bool:
        """Whether one more may pass; it is counted then. ``now``: any steady clock."""
        if int(now) != self._second:
            self._second, self._all = int(now), 0
            self._of.clear()
        sent = self._of.get(device, 0)
        if self._all >= most or sent >= most_per_device:
            return False
        self._all += 1
        self._of[device] = sent + 1
        return True
