"""Where the data plane runs: in this process, or in one per core that share the ports.

With several (SO_REUSEPORT, socket(7)), the parent moves no byte: it holds the kernel
state and the control socket, hands every change to all workers, sums what they count,
and starts a worker anew that has died. Its flows are lost then, and counted; those of
the others go on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, TypeVar

from gateway import logs
from gateway.blueprint import Blueprint
from gateway.control.running import FlowRecord
from gateway.dataplane import DataPlane
from gateway.errors import GatewayError
from gateway.groups.standing import Standing
from gateway.outbound.board import GroupReport
from gateway.worker import END, pack, read

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How often a worker is asked for its counters, so that little is lost with it (seconds).
HEARTBEAT_S: Final = 2.0
#: Before a worker that died is started anew (seconds): one that cannot live must not spin.
RESTART_S: Final = 0.5
#: Flow numbers between two lives of a worker.
LIFETIME_IDS: Final = 1_000_000_000


class Plane(Protocol):
    """A data plane, wherever it runs."""

    async def start(self) -> None:
        """Be there; not listening yet."""

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


def data_plane(plan: Blueprint, workers: int) -> Plane:
    """As many processes as ``workers``; one is this one."""
    return InProcess(plan) if workers == 1 else Workers(plan, workers)


class WorkerLostError(GatewayError):
    """The worker ended before it answered."""


class Worker:
    """One worker process and the pipe to it; one question at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.counters: Counter[str] = Counter()
        self.live = 0
        self._asking = asyncio.Lock()

    @classmethod
    async def start(cls, blueprint: Blueprint, first_id: int, step: int, index: int) -> Worker:
        """Start one; it does not listen yet."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "gateway.worker", str(first_id), str(step), str(index)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ,
        )
        assert process.stdin is not None
        process.stdin.write(pack(blueprint))
        return cls(process)

    async def ask(self, method: str, *arguments: object) -> Any:
        """Call a method of its data plane. Raises what that raises, or ``WorkerLostError``."""
        async with self._asking:
            await self._send(method, arguments)
            answer = await self._receive()
        if isinstance(answer, GatewayError):
            raise answer
        return answer

    async def flows(self, recent: int) -> list[FlowRecord]:
        """Those of ``DataPlane.flows``. Raises ``WorkerLostError``."""
        found: list[FlowRecord] = []
        async with self._asking:
            await self._send("flows", (recent,))
            while (page := await self._receive()) is not END:
                found += page
        return found

    async def _send(self, method: str, arguments: tuple[object, ...]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(pack((method, arguments)))
            await self.process.stdin.drain()
        except ConnectionError as error:
            raise self._lost() from error

    async def _receive(self) -> Any:
        assert self.process.stdout is not None
        try:
            return await read(self.process.stdout)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise self._lost() from error

    def _lost(self) -> WorkerLostError:
        return WorkerLostError(f"worker {self.process.pid} ended")

    async def stop(self) -> None:
        """End it; its flows are reset."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        await self.process.wait()


async def _those_that_live(asked: Iterable[Awaitable[T]]) -> list[T]:
    """The answers of all, less those that have ended."""
    answers = await asyncio.gather(*asked, return_exceptions=True)
    return [answer for answer in answers if not isinstance(answer, BaseException)]


class Workers:
    """All workers of a gateway, as one data plane."""

    def __init__(self, plan: Blueprint, count: int) -> None:
        self._plan = plan
        self._kept = plan.capabilities
        self._count = count
        self._workers: list[Worker] = []
        self._lives = [0] * count
        self._lost: Counter[str] = Counter()
        self._closing = False

    async def start(self) -> None:
        """Start them all; none listens yet."""
        starting = (self._start(index) for index in range(self._count))
        self._workers = list(await asyncio.gather(*starting))

    async def listen(self, plan: Blueprint) -> None:
        """Have all listen. Raises what the first that cannot raises.

        Raises ``GatewayError`` where the blueprint takes what they have given up.
        """
        missing = plan.capabilities - self._kept
        if missing:
            names = ", ".join(sorted(f"CAP_{one.name}" for one in missing))
            raise GatewayError(f"the workers have given up {names}", "restart the gateway")
        await self._tell("listen", plan)

    async def adopt(self, plan: Blueprint) -> None:
        """Have all decide new flows by this blueprint."""
        self._plan = plan
        await self._tell("adopt", plan)

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
        return sum(await self._ask_all("live_count"))

    async def flows(self, recent: int) -> list[FlowRecord]:
        """Live flows of all, then at most ``recent`` closed ones, latest first."""
        answers = await _those_that_live(worker.flows(recent) for worker in self._workers)
        everyone = [flow for flows in answers for flow in flows]
        live = [flow for flow in everyone if flow.close_reason is None]
        closed = [flow for flow in everyone if flow.close_reason is not None]
        closed.sort(key=lambda flow: flow.started + flow.duration_s, reverse=True)
        return live + closed[:recent]

    async def counters(self) -> dict[str, int]:
        """Sums of all, those of workers that have died included."""
        await self._gather_counts()
        return dict(sum((worker.counters for worker in self._workers), self._lost))

    async def without_udp(self) -> frozenset[str]:
        """Those that some worker has found out."""
        none: frozenset[str] = frozenset()
        return none.union(*await self._ask_all("without_udp"))

    async def stand(self, groups: Mapping[str, Standing], well: Collection[str]) -> None:
        """Tell all; a worker that is started later begins with it."""
        self._plan = replace(self._plan, groups=groups)
        await self._tell("stand", groups, well)

    async def group_report(self) -> GroupReport:
        """Sums of all that live."""
        used: Counter[str] = Counter()
        failures: Counter[str] = Counter()
        for report in await self._ask_all("group_report"):
            used.update(report.used)
            failures.update(report.failures)
        return GroupReport(used, failures)

    async def close(self) -> None:
        """End all workers and their flows."""
        self._closing = True
        await asyncio.gather(*(worker.stop() for worker in self._workers))

    async def _start(self, index: int) -> Worker:
        first = 1 + index + self._lives[index] * LIFETIME_IDS
        self._lives[index] += 1
        return await Worker.start(self._plan, first, self._count, index)

    async def _keep_alive(self, index: int) -> None:
        while True:
            worker = self._workers[index]
            status = await worker.process.wait()
            if self._closing:
                return
            self._lost += worker.counters
            self._lost["workers_lost"] += 1
            self._lost["flows_lost"] += worker.live
            log.error(
                "a worker died; its flows are lost, the others' go on",
                extra=logs.fields(worker=index, status=status, flows=worker.live),
            )
            await asyncio.sleep(RESTART_S)
            self._workers[index] = fresh = await self._start(index)
            try:
                await fresh.ask("listen", self._plan)
            except GatewayError as error:
                log.warning("%s", error, extra=logs.fields(worker=index, hint=error.hint))

    async def _gather_counts(self) -> None:
        for worker in self._workers:
            try:
                worker.counters = Counter(await worker.ask("counters"))
                worker.live = await worker.ask("live_count")
            except WorkerLostError:
                continue  # its keeper counts what it had when last asked

    async def _tell(self, method: str, *what: object) -> None:
        """Call a method of all. A worker that dies meanwhile is started with the newest plan."""
        answers = await asyncio.gather(
            *(worker.ask(method, *what) for worker in self._workers), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, WorkerLostError):
                raise answer

    async def _ask_all(self, method: str, *arguments: object) -> Sequence[Any]:
        return await _those_that_live(worker.ask(method, *arguments) for worker in self._workers)
