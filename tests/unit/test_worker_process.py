"""Workers as their parent has them: what it asks, and those that die, hang or cannot be had."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest

from gateway import worker_process, workers
from gateway.errors import CapabilityError, GatewayError
from gateway.kernel.handover import Handover
from gateway.worker import END, pack
from gateway.worker_process import Worker, WorkerLostError
from gateway.workers import Workers


def open_files() -> set[str]:
    return {each.name for each in Path("/proc/self/fd").iterdir()}


class Talk:
    """Stands in for a worker process: what it answers is there already."""

    pid = 1

    def __init__(self, *answers: object) -> None:
        self.asked: list[bytes] = []
        self.stdin = self
        self.stdout = asyncio.StreamReader()
        for answer in answers:
            self.stdout.feed_data(pack(answer))
        if answers:
            self.stdout.feed_eof()
        self.killed = False

    def kill(self) -> None:
        self.killed = True

    def write(self, data: bytes) -> None:
        self.asked.append(data)

    async def drain(self) -> None:
        pass


def test_a_list_of_flows_comes_in_parts_and_nothing_of_it_is_left_for_the_next_answer() -> None:
    async def scenario() -> None:
        talk = Talk([1, 2], [], [3], END, 7)
        ours, theirs = Handover.pair()
        theirs.close()
        worker = Worker(talk, ours)
        assert await worker.flows(5) == [1, 2, 3]
        assert await worker.ask("live_count") == 7
        assert talk.asked == [pack(("flows", (5,))), pack(("live_count", ()))]
        with pytest.raises(WorkerLostError):
            await worker.flows(0)
        worker.forget()

    asyncio.run(scenario())


def test_a_worker_that_does_not_answer_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "PATIENCE_S", 0.01)

    async def scenario() -> None:
        talk = Talk()
        ours, theirs = Handover.pair()
        theirs.close()
        worker = Worker(talk, ours)
        for asked in (worker.ask("live_count"), worker.flows(0)):
            talk.killed = False
            with pytest.raises(WorkerLostError):
                await asked
            assert talk.killed
        worker.forget()

    asyncio.run(scenario())


def test_a_worker_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "PATIENCE_S", 0.01)

    async def scenario() -> None:
        deaf = await asyncio.create_subprocess_exec("sleep", "60", stdin=PIPE, stdout=DEVNULL)
        ours, theirs = Handover.pair()
        theirs.close()
        await Worker(deaf, ours).stop()
        assert deaf.returncode == -9

    asyncio.run(scenario())


def test_a_process_that_cannot_be_had_is_said_and_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def none(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", none)

    async def scenario() -> None:
        before = open_files()
        with pytest.raises(GatewayError, match="Resource temporarily unavailable"):
            await Worker.start({}, 1, 1, 0)
        assert open_files() == before

    asyncio.run(scenario())


class Fake:
    """A worker that notes what it is asked, and lives until ``die`` or ``stop``."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.counters: Counter[str] = Counter(flows_accepted=1)
        self.live = 2
        self.process = self
        self.pid = 1
        self.returncode: int | None = None
        self.adopted = asyncio.Event()
        self._ended = asyncio.Event()

    def die(self, status: int = -9) -> None:
        self.returncode = status
        self._ended.set()

    async def over(self) -> int | None:
        await self._ended.wait()
        return self.returncode

    async def ask(self, method: str, *_: object) -> Any:
        self.asked.append(method)
        if method == "adopt":
            self.adopted.set()

    async def stop(self) -> None:
        self.die(0)

    def forget(self) -> None:
        pass


class Plan:
    """As much of a blueprint as whoever hands it on looks at."""

    capabilities: frozenset[str] = frozenset()


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[Fake | GatewayError]:
    """What the next starts of a worker come to, the first first."""
    found: list[Fake | GatewayError] = []

    async def start(*_: object) -> Fake:
        made = found.pop(0)
        if isinstance(made, GatewayError):
            raise made
        return made

    monkeypatch.setattr(Worker, "start", start)
    monkeypatch.setattr(workers, "RESTART_S", 0.001)
    monkeypatch.setattr(workers, "HEARTBEAT_S", 1000.0)
    return found


def test_one_that_cannot_be_replaced_at_once_is_replaced_later_and_counted_once(
    starts: list[Fake | GatewayError],
) -> None:
    async def scenario() -> None:
        first, second = Fake(), Fake()
        starts[:] = [first, GatewayError("no room"), WorkerLostError("ended"), second]
        all_of_them = Workers(Plan(), 1)
        await all_of_them.start()
        watching = asyncio.create_task(all_of_them.run())
        first.die()
        async with asyncio.timeout(60):
            await second.adopted.wait()
        assert not watching.done()
        assert second.asked == ["listen", "adopt"]
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        lost = {"workers_lost": 1, "flows_lost": 2}
        assert all_of_them._past == {**lost, "flows_accepted": 1}

    asyncio.run(scenario())


def test_a_flow_that_ends_while_all_is_counted_is_alive_or_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        ours, theirs = Handover.pair()
        theirs.close()
        worker = Worker(Talk(), ours)
        flows = {"live_count": 1, "counters": {}}

        async def ask(method: str, *_: object) -> Any:
            answer = flows[method]
            flows.update(live_count=0, counters={"closed_done": 1})
            return answer

        monkeypatch.setattr(worker, "ask", ask)
        await worker.count()
        assert worker.live or worker.counters["closed_done"]
        ours.close()

    asyncio.run(scenario())


def test_where_one_cannot_be_started_the_others_are_ended(
    starts: list[Fake | GatewayError],
) -> None:
    async def scenario() -> None:
        lucky = Fake()
        starts[:] = [lucky, GatewayError("no room")]
        with pytest.raises(GatewayError, match="no room"):
            await Workers(Plan(), 2).start()
        assert lucky.returncode == 0

    asyncio.run(scenario())


def test_what_one_of_them_cannot_do_is_not_taken_for_its_end(
    starts: list[Fake | GatewayError],
) -> None:
    class Unable(Fake):
        async def ask(self, method: str, *_: object) -> Any:
            raise CapabilityError("not here") if method == "live_count" else WorkerLostError("x")

    async def scenario() -> None:
        starts[:] = [Unable()]
        all_of_them = Workers(Plan(), 1)
        await all_of_them.start()
        assert await all_of_them.without_udp() == frozenset()
        with pytest.raises(CapabilityError, match="not here"):
            await all_of_them.live_count()

    asyncio.run(scenario())
