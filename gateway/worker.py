"""One worker: a data plane in a process of its own, told what to do over its standard input.

Started by ``gateway.worker_process``. The end of input is the end of the worker: whatever
becomes of the parent, no worker outlives it.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import struct
import sys
from collections.abc import Iterator
from typing import Any, Final

from gateway import logs
from gateway.blueprint import Blueprint
from gateway.dataplane import DataPlane
from gateway.errors import GatewayError
from gateway.kernel.handover import Handover
from gateway.kernel.privilege import keep_only
from gateway.kernel.reactor import run
from gateway.pauses import shorten_pauses

#: Length of a message, then the message. Both ends are this program: pickle is safe here.
HEADER: Final = struct.Struct("!I")
#: A longer message (a policy with hundreds of rules) is unpacked by a thread, with which flows
#: share the interpreter by turns: done at once, it would stall them all.
LARGE_BYTES: Final = 64 << 10
#: Behind the last part of an answer that comes in parts.
END: Final = None


async def read(stream: asyncio.StreamReader) -> Any:
    """The next message. Raises ``asyncio.IncompleteReadError`` at the end."""
    (length,) = HEADER.unpack(await stream.readexactly(HEADER.size))
    message = await stream.readexactly(length)
    if length > LARGE_BYTES:
        return await asyncio.to_thread(pickle.loads, message)
    return pickle.loads(message)  # noqa: S301 - our own process


def pack(message: object) -> bytes:
    """A message as it is sent."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(body)) + body


async def _serve(first_id: int, step: int, index: int, handover: int) -> None:
    loop = asyncio.get_running_loop()
    requests = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    blueprint: Blueprint = await read(requests)
    keep_only(blueprint.capabilities)
    logs.configure(blueprint.log_level, blueprint.log_format)
    given = Handover.inherited(handover)
    plane = DataPlane(blueprint, first_id, step, index)
    timing = asyncio.create_task(plane.time_flows(), name="time-outs")
    shorten_pauses()
    try:
        while True:
            method, arguments = await read(requests)
            if method == "attach":
                arguments = (given.take(), *arguments)
            answer = _answer(plane, method, arguments)
            if isinstance(answer, Iterator):
                for part in answer:
                    answers.write(pack(part))
                    await asyncio.sleep(0)  # flows that are ready are not kept waiting
                answer = END
            answers.write(pack(answer))
    except asyncio.IncompleteReadError:
        pass  # the parent has ended, or wants us to
    finally:
        timing.cancel()
        plane.close()
        given.close()


def _answer(plane: DataPlane, method: str, arguments: tuple[Any, ...]) -> object:
    try:
        return getattr(plane, method)(*arguments)
    except GatewayError as error:
        return error


def main() -> None:
    """Entry point: ``python -m gateway.worker FIRST_ID STEP INDEX HANDOVER``."""
    # The parent decides when it is over: a service manager's SIGTERM reaches every process.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    run(_serve(*map(int, sys.argv[1:5])))


if __name__ == "__main__":
    main()
