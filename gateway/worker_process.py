"""One worker as its parent has it: the process, and the pipes to it."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections import Counter
from collections.abc import Coroutine
from contextlib import ExitStack, closing, suppress
from typing import Any, Final

from gateway import logs
from gateway.blueprint import Blueprint
from gateway.control.running import FlowRecord
from gateway.errors import GatewayError
from gateway.kernel.children import undisturbed
from gateway.kernel.handover import Handover
from gateway.worker import END, pack, read

log = logging.getLogger(__name__)

#: A worker that has not answered in twice this time (seconds) is stuck, and ended as one that
#: died is replaced: nobody could reload or stop the gateway else. Twice, for we may have stood
#: still ourselves (SIGSTOP), with the answer there and not yet read.
PATIENCE_S: Final = 15.0


class WorkerLostError(GatewayError):
    """The worker ended before it answered."""


class Worker:
    """One worker process and the pipe to it; one question at a time."""

    def __init__(self, process: asyncio.subprocess.Process, handover: Handover) -> None:
        self.process = process
        self._handover = handover
        self.counters: Counter[str] = Counter()
        self.live = 0
        self._asking = asyncio.Lock()
        self._replaced = asyncio.Event()

    @classmethod
    async def start(cls, blueprint: Blueprint, first_id: int, step: int, index: int) -> Worker:
        """Start one; it does not listen yet. Raises ``GatewayError`` where none can be had."""
        try:
            ours, theirs = Handover.pair()
            with closing(theirs), undisturbed(), ExitStack() as unless_started:
                unless_started.callback(ours.close)
                numbers = map(str, (first_id, step, index, theirs.fileno()))
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *("-m", "gateway.worker", *numbers),
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    env=os.environ,
                )
                unless_started.pop_all()
        except OSError as error:
            raise GatewayError(
                f"cannot start a worker: {error.strerror}",
                "make room for processes and descriptors, or lower `inbound.workers`",
            ) from error
        assert process.stdin is not None
        process.stdin.write(pack(blueprint))
        return cls(process, ours)

    async def attach(self, fd: int, queues: int) -> None:
        """See ``DataPlane.attach``; it is given a copy. Raises ``WorkerLostError``."""
        async with self._asking:
            self._handover.give(fd)
            await self._in_time(self._exchange("attach", (queues,)))

    async def ask(self, method: str, *arguments: object) -> Any:
        """Call a method of its data plane. Raises what that raises, or ``WorkerLostError``."""
        async with self._asking:
            answer = await self._in_time(self._exchange(method, arguments))
        if isinstance(answer, GatewayError):
            raise answer
        return answer

    async def flows(self, recent: int) -> list[FlowRecord]:
        """Those of ``DataPlane.flows``. Raises ``WorkerLostError``."""
        found: list[FlowRecord] = []
        async with self._asking:
            page = await self._in_time(self._exchange("flows", (recent,)))
            while page is not END:
                found += page
                page = await self._in_time(self._receive())
        return found

    async def _in_time(self, answer: Coroutine[Any, Any, Any]) -> Any:
        """The answer; a worker that owes it for too long is killed."""
        answering = asyncio.ensure_future(answer)
        try:
            for _ in range(2):
                if (await asyncio.wait({answering}, timeout=PATIENCE_S))[0]:
                    return answering.result()
        finally:
            answering.cancel()
        self._kill()
        raise self._lost()

    async def _exchange(self, method: str, arguments: tuple[object, ...]) -> Any:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(pack((method, arguments)))
            await self.process.stdin.drain()
        except ConnectionError as error:
            raise self._lost() from error
        return await self._receive()

    async def _receive(self) -> Any:
        assert self.process.stdout is not None
        try:
            return await read(self.process.stdout)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise self._lost() from error

    async def count(self) -> None:
        """Note its counters and live flows. Raises ``WorkerLostError``."""
        # In this order: of one without a flow, nothing is missing in what it counts after that.
        self.live = await self.ask("live_count")
        self.counters = Counter(await self.ask("counters"))

    def replace(self) -> None:
        """Another has its place from now on."""
        self._replaced.set()

    async def over(self) -> int | None:
        """Its exit status once it has ended; None where it was replaced before."""
        waits = (
            asyncio.ensure_future(self.process.wait()),
            asyncio.ensure_future(self._replaced.wait()),
        )
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return None if self._replaced.is_set() else self.process.returncode

    def _lost(self) -> WorkerLostError:
        return WorkerLostError(f"worker {self.process.pid} ended")

    async def stop(self) -> None:
        """End it; its flows are reset."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.process.wait()
        except TimeoutError:
            self._kill()
            await self.process.wait()
        self.forget()

    def _kill(self) -> None:
        log.error("a worker is stuck, and killed", extra=logs.fields(pid=self.process.pid))
        with suppress(ProcessLookupError):
            self.process.kill()

    def forget(self) -> None:
        """Once it has ended."""
        self._handover.close()
