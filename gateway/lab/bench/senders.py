"""Senders of datagrams in a candidate's lab, the relay that they go to, and their counts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from gateway.lab.bench.candidates import TARGET
from gateway.lab.bench.rig import WARM_UP_S, Rig
from gateway.lab.gateway_process import ENVIRONMENT
from gateway.lab.lab import Lab
from gateway.lab.load import datagrams
from gateway.lab.load.counters import Counters
from gateway.lab.process import READY_TIMEOUT_S, LabError, Process

Kind = Literal["plain", "steady", "train", "many", "echo", "open"]

#: The relay's address is that of an upstream which nothing else serves here.
UPSTREAM: Final = "spare"
_RELAY: Final = "relay.counters"
#: What has not arrived so long after the last that did is lost (seconds).
SETTLED_S: Final = 0.3


@dataclass(frozen=True, slots=True)
class Count:
    """All counts at one moment."""

    time_s: float
    cpu_s: float
    arrived: int
    answered: int
    sent: int


class Sender:
    """One that is running, and the relay."""

    def __init__(self, rig: Rig, process: Process, counters: Counters) -> None:
        self._rig = rig
        self._process = process
        self._counters = counters
        self._relay = Counters(rig.lab.directory / _RELAY, datagrams.ENDS)
        self._before = self._relay.read()["arrived"]

    def count(self) -> Count:
        """Now, since it was started."""
        sent = self._counters.read()
        arrived = self._relay.read()["arrived"] - self._before
        return Count(time.monotonic(), self._rig.cpu_s(), arrived, sent["answered"], sent["sent"])

    def window(self, seconds: float, warm: int = 1) -> tuple[Count, Count]:
        """Two counts so far apart, once ``warm`` datagrams have arrived. Raises ``LabError``."""
        until = time.monotonic() + READY_TIMEOUT_S
        while self.count().arrived < warm:
            if time.monotonic() > until:
                raise LabError(f"fewer than {warm} datagrams arrive")
            time.sleep(0.01)
        time.sleep(WARM_UP_S)
        first = self.count()
        time.sleep(seconds)
        return first, self.count()

    def stop(self) -> list[float]:
        """End it; how long each of its answers took (seconds), where it waits for them."""
        self._process.stop()
        times_s: list[float] = json.loads(self._process.log[-1])
        return times_s

    def settle(self) -> Count:
        """The counts once nothing is under way any more, after its end."""
        count = self.count()
        while True:
            time.sleep(SETTLED_S)
            last, count = count, self.count()
            if count.arrived == last.arrived or count.arrived >= count.sent:
                return count


@contextmanager
def sending(rig: Rig, kind: Kind, rate: int = 1) -> Iterator[Sender]:
    """A sender in the LAN until the context ends. ``rate``: datagrams a second."""
    lab = rig.lab
    name = f"{kind}{time.monotonic_ns()}.counters"
    target = lab.topology.targets[TARGET].ipv4
    process = _run(lab, "desk", name, kind, target, rate)
    try:
        yield Sender(rig, process, Counters(lab.directory / name, datagrams.ENDS))
    finally:
        process.stop()


def start_relay(lab: Lab) -> None:
    """The far end, as the upstream ``UPSTREAM``."""
    settings = lab.topology.upstreams[UPSTREAM]
    process = _run(lab, "internet", _RELAY, "serve", settings.addresses.ipv4, settings.port)
    process.wait_until(lambda: datagrams.READY in process.log, "the relay")


def _run(lab: Lab, machine: str, counters: str, kind: str, host: str, number: int) -> Process:
    path = lab.directory / counters
    Counters(path, datagrams.ENDS, create=True)
    command = [sys.executable, "-m", "gateway.lab.load.datagrams", str(path), kind, host]
    return lab.machines[machine].start(path.stem, [*command, str(number)], ENVIRONMENT)
