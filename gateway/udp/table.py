"""The conversations that there are: by their ends, and by device, the oldest first."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Final

from gateway.flow import CloseReason, Endpoint
from gateway.udp.flow import UdpFlow, UdpSettings

#: Conversations looked at to find one that is quiet, when there is no room for another.
SECOND_CHANCES: Final = 16


class FlowTable:
    """A bounded number of conversations."""

    def __init__(self) -> None:
        self._flows: dict[UdpFlow, None] = {}
        self._of_device: defaultdict[str, dict[UdpFlow, None]] = defaultdict(dict)
        self._by_ends: dict[tuple[Endpoint, Endpoint], UdpFlow] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._flows)

    def all(self) -> tuple[UdpFlow, ...]:
        """The oldest first."""
        return tuple(self._flows)

    def find(self, source: Endpoint, destination: Endpoint) -> UdpFlow | None:
        """The one between these ends."""
        return self._by_ends.get((source, destination))

    def has_room(self, host: str, settings: UdpSettings) -> bool:
        """Whether there may be another one of this device."""
        device = self._of_device.get(host, ())
        return len(device) < settings.flows_per_device and len(self._flows) < settings.flows

    def make_room(self, host: str, settings: UdpSettings) -> None:
        """End some, so that there may."""
        device = self._of_device.get(host, {})
        if len(device) >= settings.flows_per_device:
            _evict(device)
        if len(self._flows) >= settings.flows:
            _evict(self._flows)

    def add(self, flow: UdpFlow) -> None:
        """One that has begun."""
        facts = flow.facts
        self._flows[flow] = None
        self._of_device[facts.source.host][flow] = None
        self._by_ends[facts.source, facts.destination] = flow

    def remove(self, flow: UdpFlow) -> None:
        """One that has ended."""
        facts = flow.facts
        del self._flows[flow]
        device = self._of_device[facts.source.host]
        del device[flow]
        if not device:
            del self._of_device[facts.source.host]
        del self._by_ends[facts.source, facts.destination]


def _evict(among: dict[UdpFlow, None]) -> None:
    """End the oldest that has been quiet since the last look, or else the oldest looked at."""
    now = time.monotonic()
    for _ in range(min(SECOND_CHANCES, len(among) - 1)):
        flow = next(iter(among))
        if not flow.moved(now):
            break
        del among[flow]
        among[flow] = None
    next(iter(among)).close(CloseReason.EVICTED)
