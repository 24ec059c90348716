"""What of ours stands in the kernel, for an event loop: each call waits in a thread."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gateway.kernel import deadman
from gateway.kernel.applier import Applier
from gateway.kernel.tun import TunSettings
from gateway.kernel.tun_keeper import TunKeeper
from gateway.plan.model import Backend, Plan
from gateway.plan.snapshot import Snapshot

log = logging.getLogger(__name__)


class KernelState:
    """Plans that are applied, and the TUN device.

    Changes must not overlap; ``refresh`` and ``snapshot`` may come at any time.
    """

    def __init__(self, run_dir: Path) -> None:
        """``run_dir``: as of ``Applier``."""
        self._applier = Applier(run_dir)
        self._tun = TunKeeper()
        self._warned: frozenset[str] = frozenset()
        # Of its own: the threads of the loop may all wait for servers that do not answer.
        self._refreshing = ThreadPoolExecutor(1, "dead-man")

    async def apply(self, plan: Plan, spare: Plan | None = None) -> tuple[str, ...]:
        """Make it so; what was changed. What stands in its way is logged once.

        Raises as ``Applier.apply``.
        """
        report = await asyncio.to_thread(self._applier.apply, plan, spare)
        for warning in report.warnings:
            if warning not in self._warned:
                log.warning("%s", warning)
        self._warned = frozenset(report.warnings)
        return report.steps

    async def remove(self) -> None:
        """Take all of it away. Raises ``ApplyError``."""
        await asyncio.to_thread(self._applier.remove)

    async def forget_redirected(self) -> None:
        """Once nobody serves what was redirected any more. Raises ``ApplyError``."""
        await asyncio.to_thread(self._applier.forget_redirected)

    async def snapshot(self, backend: Backend) -> Snapshot:
        """What is installed. Raises ``ApplyError``."""
        return await asyncio.to_thread(self._applier.snapshot, backend)

    async def refresh(self, plan: Plan) -> None:
        """Say that we are alive, also beside a change. Raises ``ApplyError``."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._refreshing, deadman.refresh, plan)

    @property
    def queues(self) -> tuple[int, ...]:
        """The TUN's, as descriptors; none where there is no device."""
        return self._tun.queues

    async def keep_device(self, settings: TunSettings, queues: int) -> bool:
        """Have the TUN; True where its queues are new. Raises as ``TunKeeper.keep``."""
        return await asyncio.to_thread(self._tun.keep, settings, queues)

    def let_device_go(self) -> None:
        """Close the queues: the device goes with the last reader of one."""
        self._tun.close()
