"""A data plane, as whoever holds the kernel state sees it, wherever it runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from gateway.blueprint import Blueprint
from gateway.control.running import FlowRecord
from gateway.dataplane import DataPlane
from gateway.groups.standing import Standing
from gateway.outbound.board import GroupReport


class Plane(Protocol):
    """A data plane, wherever it runs."""

    async def start(self) -> None:
        """Be there; not listening yet."""

    async def attach(self, queues: Sequence[int]) -> None:
        """Read these queues of the TUN, from now on and instead of others."""

    async def listen(self, plan: Blueprint) -> None:
        """Listen as the blueprint says, beside what is listened to. Raises ``GatewayError``."""

    async def adopt(self, plan: Blueprint) -> None:
        """Decide new flows by the blueprint, and listen for no other."""

    async def run(self) -> None:
        """Do what must be done all the time, until cancelled."""

    async def live_count(self) -> int:
        """How many flows have not closed."""

    async def flows(self, recent: int) -> list[FlowRecord]:
        """Live flows, then at most ``recent`` closed ones, latest first."""

    async def counters(self) -> dict[str, int]:
        """Totals since the start."""

    async def without_udp(self) -> frozenset[str]:
        """The outbounds that have turned out to carry no UDP."""

    async def stand(self, groups: Mapping[str, Standing], well: Collection[str]) -> None:
        """See ``DataPlane.stand``."""

    async def group_report(self) -> GroupReport:
        """What flows have shown of groups and members."""

    async def close(self) -> None:
        """End, with every flow."""


class InProcess:
    """The data plane in this very process."""

    def __init__(self, plan: Blueprint) -> None:
        self._plane = DataPlane(plan)

    async def start(self) -> None:
        """It is there."""

    async def attach(self, queues: Sequence[int]) -> None:
        """See ``DataPlane.attach``."""
        if queues:
            self._plane.attach(os.dup(queues[0]), len(queues))

    async def listen(self, plan: Blueprint) -> None:
        """See ``DataPlane.listen``."""
        self._plane.listen(plan)

    async def adopt(self, plan: Blueprint) -> None:
        """See ``DataPlane.adopt``."""
        self._plane.adopt(plan)

    async def run(self) -> None:
        """End flows that take or stay too long."""
        await self._plane.time_flows()

    async def live_count(self) -> int:
        """See ``DataPlane.live_count``."""
        return self._plane.live_count()

    async def flows(self, recent: int) -> list[FlowRecord]:
        """See ``DataPlane.flows``."""
        found = []
        for page in self._plane.flows(recent):
            found += page
            await asyncio.sleep(0)
        return found

    async def counters(self) -> dict[str, int]:
        """See ``DataPlane.counters``."""
        return self._plane.counters()

    async def without_udp(self) -> frozenset[str]:
        """See ``DataPlane.without_udp``."""
        return self._plane.without_udp()

    async def stand(self, groups: Mapping[str, Standing], well: Collection[str]) -> None:
        """See ``DataPlane.stand``."""
        self._plane.stand(groups, well)

    async def group_report(self) -> GroupReport:
        """See ``DataPlane.group_report``."""
        return self._plane.group_report()

    async def close(self) -> None:
        """See ``DataPlane.close``."""
        self._plane.close()
