"""Where the data plane runs: in this process, or in one per core that share the ports.

With several (SO_REUSEPORT, socket(7)), the parent moves no byte: it holds the kernel
state and the control socket, hands every change to all workers, sums what they count,
and starts a worker anew that has died, or had to be ended because it hung. Its flows are
lost then, and counted; those of the others go on. Where a change takes a capability that
the workers have given up, others take their place, and they stay for as long as they have
flows.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from gateway import logs
from gateway.blueprint import Blueprint
from gateway.control.running import FlowRecord
from gateway.errors import GatewayError
from gateway.groups.standing import Standing
from gateway.outbound.board import GroupReport
from gateway.plane import InProcess, Plane
from gateway.worker_process import Worker, WorkerLostError

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How often a worker is asked for its counters, so that little is lost with it (seconds).
HEARTBEAT_S: Final = 2.0
#: Before a worker that died is started anew (seconds): one that cannot live must not spin.
RESTART_S: Final = 0.5
#: Flow numbers between two lives of a worker.
LIFETIME_IDS: Final = 1_000_000_000


def data_plane(plan: Blueprint, workers: int) -> Plane:
    """As many processes as ``workers``; one is this one."""
    return InProcess(plan) if workers == 1 else Workers(plan, workers)


async def _those_that_live(asked: Iterable[Awaitable[T]]) -> list[T]:
    """The answers of all, less those that have ended. Raises what another one raises."""
    found = []
    for answer in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(answer, WorkerLostError):
            continue
        if isinstance(answer, BaseException):
            raise answer
        found.append(answer)
    return found


class Workers:
    """All workers of a gateway, as one data plane."""

    def __init__(self, plan: Blueprint, count: int) -> None:
        self._plan = plan
        self._kept = plan.capabilities
        self._count = count
        self._workers: list[Worker] = []
        self._replaced: list[Worker] = []  # still listening, until the next ``adopt``
        self._retired: list[Worker] = []  # until their last flow has closed
        self._lives = [0] * count
        self._queues: tuple[int, ...] = ()
        self._past: Counter[str] = Counter()  # of workers that have ended
        self._closing = False

    async def start(self) -> None:
        """Start them all; none listens yet."""
        self._workers = await self._start_all(self._plan)

    async def attach(self, queues: Sequence[int]) -> None:
        """Give each worker, and those that take its place, a queue; as far as there are any."""
        self._queues = tuple(queues)
        attached = (
            worker.attach(fd, len(queues))
            for worker, fd in zip(self._workers, queues, strict=False)
        )
        await _those_that_live(attached)

    async def listen(self, plan: Blueprint) -> None:
        """Have all listen. Raises what the first that cannot raises."""
        if plan.capabilities <= self._kept:
            await self._tell("listen", plan)
            return
        if self._plan.listen_on.tun is not None:
            # A flow's packets would come to one that does not know it.
            missing = ", ".join(sorted(f"CAP_{c.name}" for c in plan.capabilities - self._kept))
            raise GatewayError(
                f"the workers that read the TUN device have given up {missing}",
                "restart the gateway",
            )
        wider = replace(self._plan, capabilities=plan.capabilities)
        fresh = await self._start_all(wider)
        try:
            await asyncio.gather(*(worker.ask("listen", plan) for worker in fresh))
        except BaseException:
            await asyncio.gather(*(worker.stop() for worker in fresh))
            raise
        replaced, self._workers = self._workers, fresh
        self._plan, self._kept = wider, wider.capabilities
        self._replaced += replaced
        for worker in replaced:
            worker.replace()

    async def adopt(self, plan: Blueprint) -> None:
        """Have all decide new flows by this blueprint."""
        self._plan = plan
        await self._tell("adopt", plan)
        replaced, self._replaced = self._replaced, []
        self._retired += replaced
        await _those_that_live(worker.ask("retire") for worker in replaced)

    async def run(self) -> None:
        """Watch over the workers; runs until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for index in range(self._count):
                tasks.create_task(self._keep_alive(index), name=f"worker {index}")
            while True:
                await asyncio.sleep(HEARTBEAT_S)
                await self._gather_counts()

    async def live_count(self) -> int:
        """Flows of all that have not closed."""
        return sum(await _those_that_live(one.ask("live_count") for one in self._everyone))

    async def flows(self, recent: int) -> list[FlowRecord]:
        """Live flows of all, then at most ``recent`` closed ones, latest first."""
        answers = await _those_that_live(worker.flows(recent) for worker in self._everyone)
        everyone = [flow for flows in answers for flow in flows]
        live = [flow for flow in everyone if flow.close_reason is None]
        closed = [flow for flow in everyone if flow.close_reason is not None]
        closed.sort(key=lambda flow: flow.started + flow.duration_s, reverse=True)
        return live + closed[:recent]

    async def counters(self) -> dict[str, int]:
        """Sums of all, those of workers that have died included."""
        await self._gather_counts()
        return dict(sum((worker.counters for worker in self._everyone), self._past))

    async def without_udp(self) -> frozenset[str]:
        """Those that some worker has found out."""
        none: frozenset[str] = frozenset()
        answers = await _those_that_live(one.ask("without_udp") for one in self._workers)
        return none.union(*answers)

    async def stand(self, groups: Mapping[str, Standing], well: Collection[str]) -> None:
        """Tell all; a worker that is started later begins with it."""
        self._plan = replace(self._plan, groups=groups)
        await self._tell("stand", groups, well)

    async def group_report(self) -> GroupReport:
        """Sums of all that live."""
        used: Counter[str] = Counter()
        failures: Counter[str] = Counter()
        for report in await _those_that_live(one.ask("group_report") for one in self._workers):
            used.update(report.used)
            failures.update(report.failures)
        return GroupReport(used, failures)

    async def close(self) -> None:
        """End all workers and their flows."""
        self._closing = True
        await asyncio.gather(*(worker.stop() for worker in self._everyone))

    @property
    def _everyone(self) -> list[Worker]:
        return [*self._workers, *self._replaced, *self._retired]

    async def _start_all(self, plan: Blueprint) -> list[Worker]:
        """As many as there are to be, or none. Raises ``GatewayError``."""
        starting = (self._start(index, plan) for index in range(self._count))
        started: list[Worker] = []
        problems: list[BaseException] = []
        for each in await asyncio.gather(*starting, return_exceptions=True):
            if isinstance(each, BaseException):
                problems.append(each)
            else:
                started.append(each)
        if problems:
            await asyncio.gather(*(worker.stop() for worker in started))
            raise problems[0]
        return started

    async def _start(self, index: int, plan: Blueprint) -> Worker:
        first = 1 + index + self._lives[index] * LIFETIME_IDS
        self._lives[index] += 1
        worker = await Worker.start(plan, first, self._count, index)
        if index < len(self._queues):
            try:
                await worker.attach(self._queues[index], len(self._queues))
            except WorkerLostError:
                await worker.stop()
                raise
        return worker

    async def _keep_alive(self, index: int) -> None:
        while True:
            worker = self._workers[index]
            status = await worker.over()
            if self._closing:
                return
            if status is None:
                continue  # the one in its place
            self._count_lost(worker)
            while self._workers[index] is worker:  # others may be started meanwhile
                await asyncio.sleep(RESTART_S)
                try:
                    await self._fill_place(index, worker)
                except GatewayError as error:
                    log.warning("%s", error, extra=logs.fields(worker=index, hint=error.hint))

    async def _fill_place(self, index: int, dead: Worker) -> None:
        """Have another worker where one has died, unless there is one by now."""
        if self._workers[index] is not dead:
            return
        fresh = await self._start(index, self._plan)
        if self._workers[index] is not dead:
            await fresh.stop()
            return
        self._workers[index] = fresh
        plan = None
        while plan is not self._plan:  # it may change meanwhile
            plan = self._plan
            await fresh.ask("listen", plan)
            await fresh.ask("adopt", plan)

    def _count_lost(self, worker: Worker) -> None:
        worker.forget()
        self._past += worker.counters
        self._past["workers_lost"] += 1
        self._past["flows_lost"] += worker.live
        log.error(
            "a worker died; its flows are lost, the others' go on",
            extra=logs.fields(
                pid=worker.process.pid, status=worker.process.returncode, flows=worker.live
            ),
        )

    async def _gather_counts(self) -> None:
        for worker in self._everyone:
            try:
                await worker.count()
            except WorkerLostError:
                if worker in self._retired:
                    self._retired.remove(worker)
                    self._count_lost(worker)
                continue  # of others, their keeper counts what they had when last asked
            if worker in self._retired and not worker.live:
                self._retired.remove(worker)
                self._past += worker.counters
                await worker.stop()

    async def _tell(self, method: str, *what: object) -> None:
        """Call a method of all. A worker that dies meanwhile is started with the newest plan."""
        await _those_that_live(worker.ask(method, *what) for worker in self._workers)
