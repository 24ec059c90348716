"""A candidate at work: a lab of its own, with servers outside and clients inside.

Each candidate has its own namespaces, so that no other's rules, connection tracking or
leftovers are in its way, and all stay up, so that rounds can be interleaved.
"""

from __future__ import annotations

import itertools
import json
import re
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Final, Literal, Self

from gateway.lab.bench import usage
from gateway.lab.bench.candidates import TARGET, UPSTREAM, Candidate
from gateway.lab.gateway_process import ENVIRONMENT
from gateway.lab.lab import Lab
from gateway.lab.load import server
from gateway.lab.load.counters import CLIENT, Counters
from gateway.lab.process import LabError, Process, wait_until

#: Before each window: TCP's buffers grow to their size, and all clients get under way (seconds).
WARM_UP_S: Final = 0.25
#: The same for clients that only rest in between.
SETTLE_S: Final = 0.03
#: Tens of thousands of connections, one after the other.
MANY_TIMEOUT_S: Final = 180.0
PINGS: Final = 9
#: A connection's port is spent for a minute after its end (tcp(7)); a run makes many.
PORT_RANGE: Final = "1024 65535"
#: A machine's default may pace what it sends (bbr), by a timer for each burst: in a virtual
#: machine, those cost more than all the rest. Of what is not paced, as Linux's usual ``cubic``
#: is not, only this may be chosen in every namespace (``tcp_set_default_congestion_control``).
CONGESTION_CONTROL: Final = "reno"

Kind = Literal["download", "upload", "exchange", "idle", "active"]


@dataclass(frozen=True, slots=True)
class Sample:
    """All counts at one moment: seconds, bytes at whichever end received them, exchanges."""

    time_s: float
    cpu_s: float
    received: int
    exchanges: int

    @property
    def work(self) -> int:
        """What grows while anything moves."""
        return self.received + self.exchanges


class Clients:
    """Clients that are running; counts are read while they count."""

    def __init__(self, rig: Rig, process: Process, counters: Counters) -> None:
        self._rig = rig
        self._counters = counters
        self.process = process

    def read(self, name: str) -> int:
        """One of ``gateway.lab.load.CLIENT``."""
        return self._counters.read()[name]

    def sample(self) -> Sample:
        """Now."""
        counts = self._counters.read()
        return Sample(
            time.monotonic(),
            self._rig.cpu_s(),
            counts["received"] + self._rig.served("received"),
            counts["exchanges"],
        )

    def window(self, seconds: float, exchanges: int = 0) -> tuple[Sample, Sample]:
        """Two samples in full swing, so far apart, and so many exchanges at least.

        Raises ``LabError`` where nothing moves.
        """
        self._wait_moved(self.sample())
        time.sleep(WARM_UP_S)
        return self._apart(seconds, exchanges)

    def slice(self, seconds: float) -> tuple[Sample, Sample]:
        """Two samples so far apart, of clients that rest before and after.

        Raises ``LabError`` where nothing moves.
        """
        start = self.sample()
        self.process.signal(signal.SIGCONT)
        try:
            time.sleep(SETTLE_S)
            self._wait_moved(start)
            return self._apart(seconds)
        finally:
            self.process.signal(signal.SIGSTOP)

    def _wait_moved(self, start: Sample, exchanges: int = 0) -> None:
        def moved() -> bool:
            now = self.sample()
            return now.work > start.work and now.exchanges >= start.exchanges + exchanges

        self.process.wait_until(moved, "something to move")

    def _apart(self, seconds: float, exchanges: int = 0) -> tuple[Sample, Sample]:
        first = self.sample()
        time.sleep(seconds)
        # On a busy machine somebody may have stood still for as long as that.
        self._wait_moved(first, exchanges)
        return first, self.sample()

    def wait_established(self, connections: int) -> None:
        """Until so many are open to the far end. Raises ``LabError`` when they do not come up."""
        self.process.wait_until(
            lambda: self.read("established") >= connections,
            f"{connections} connections to be open",
            MANY_TIMEOUT_S,
        )

    def first_bytes_s(self) -> list[float]:
        """End them, and return the times to first byte of their exchanges, in order."""
        self.process.stop()
        times: list[float] = json.loads(self.process.log[-1])
        return times


class Rig:
    """A context manager: a candidate that is up, until the end."""

    def __init__(self, candidate: Candidate, wan_delay_ms: float = 0, servers: int = 1) -> None:
        """``wan_delay_ms``: as of ``Lab``. ``servers``: processes that share the far end."""
        self.candidate = candidate
        self._lab = Lab(wan_delay_ms=wan_delay_ms)
        self._servers = servers
        self._counters: list[Counters] = []
        self._runs = itertools.count()
        self._running = 0
        self._resting: dict[tuple[Kind, int, int], Clients] = {}
        self._stack = ExitStack()
        self.process: Process | None = None

    def __enter__(self) -> Self:
        """Build the lab, and start servers and candidate. Raises ``GatewayError``."""
        self._lab.__enter__()
        try:
            self._start_servers()
            self.process = self.candidate.start(self._lab)
        except BaseException:
            self._lab.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove all."""
        for clients in self._resting.values():
            clients.process.signal(signal.SIGCONT)
        try:
            self._stack.close()
        finally:
            self._lab.close()

    @property
    def lab(self) -> Lab:
        """Its lab, for what has clients and servers of its own."""
        return self._lab

    def _start_servers(self) -> None:
        self._lab.internet.sysctl("net.core.somaxconn", str(server.BACKLOG))
        for machine in self._lab.machines.values():
            machine.sysctl("net.ipv4.ip_local_port_range", PORT_RANGE)
            machine.sysctl("net.ipv4.tcp_congestion_control", CONGESTION_CONTROL)
        upstream = self._lab.topology.upstreams[UPSTREAM]
        for number in range(self._servers):
            path = self._lab.directory / f"server{number}.counters"
            self._counters.append(Counters(path, server.COUNTERS, create=True))
            command = [sys.executable, "-m", "gateway.lab.load.server", str(path)]
            command += [*upstream.addresses, str(upstream.port)]
            process = self._lab.internet.start(path.stem, command, ENVIRONMENT)
            process.wait_until(partial(_said, process, server.READY), "the services to listen")

    def served(self, name: str) -> int:
        """One of ``gateway.lab.load.server.COUNTERS``, of all servers."""
        return sum(counters.read()[name] for counters in self._counters)

    @contextmanager
    def clients(
        self,
        kind: Kind,
        connections: int,
        family: Literal[4, 6] = 4,
        machine: Literal["desk", "kid"] = "desk",
    ) -> Iterator[Clients]:
        """Clients in the LAN until the context ends; of the last ones, their connections too.

        Raises ``LabError`` where traffic went past the candidate, or connections stay.
        """
        path = self._lab.directory / f"clients{next(self._runs)}.counters"
        counters = Counters(path, CLIENT, create=True)
        target = self._lab.topology.targets[TARGET]
        command = [sys.executable, "-m", "gateway.lab.load.client", str(path)]
        command += [target.ipv4 if family == 4 else target.ipv6, kind, str(connections)]
        past = "socks" if self.candidate.way == "direct" else "direct"
        before = self.served(past)
        process = self._lab.client(machine).start(path.stem, command, ENVIRONMENT)
        self._running += 1
        try:
            yield Clients(self, process, counters)
        finally:
            process.stop()
            self._running -= 1
            if not self._running:
                wait_until(
                    lambda: not self.served("open"),
                    f"{self.candidate.name}: the last connection to end",
                    MANY_TIMEOUT_S,
                )
        if self.served(past) != before:
            raise LabError(f"{self.candidate.name}: connections went past it")

    def resting(self, kind: Kind, connections: int, family: Literal[4, 6] = 4) -> Clients:
        """Clients that are started once, and move only for each ``Clients.slice``."""
        key = (kind, connections, family)
        if key not in self._resting:
            clients = self._stack.enter_context(self.clients(kind, connections, family))
            clients.window(WARM_UP_S)
            clients.process.signal(signal.SIGSTOP)
            self._resting[key] = clients
        return self._resting[key]

    def round_trip_s(self) -> float:
        """From the router to the SOCKS server and back: the median of a few pings."""
        server = self._lab.topology.upstreams[UPSTREAM].addresses.ipv4
        command = ["ping", "-n", "-c", str(PINGS), "-i", "0.02", server]
        times_ms = re.findall(r"time=([0-9.]+) ms", self._lab.router.run(command).stdout)
        return statistics.median(map(float, times_ms)) / 1e3

    def cpu_s(self) -> float:
        """CPU that the candidate has used (seconds); 0 for the kernel alone."""
        return 0.0 if self.process is None else usage.cpu_s(self.process.pid)

    def descriptors(self) -> int:
        """Open files and sockets of the candidate now."""
        return 0 if self.process is None else usage.descriptors(self.process.pid)

    def anonymous_bytes(self) -> int:
        """Memory that the candidate has allocated and used."""
        return 0 if self.process is None else usage.anonymous_bytes(self.process.pid)

    def resident_bytes(self) -> int:
        """Memory of each of the candidate's processes, shared or not."""
        return 0 if self.process is None else usage.resident_bytes(self.process.pid)

    def memory_bytes(self) -> int:
        """Memory that the candidate has now."""
        return 0 if self.process is None else usage.memory_bytes(self.process.pid)


def _said(process: Process, line: str) -> bool:
    return line in process.log
