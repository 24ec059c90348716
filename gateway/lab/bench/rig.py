"""A candidate at work: a lab of its own, with servers outside and clients inside.

Each candidate has its own namespaces, so that no other's rules, connection tracking or
leftovers are in its way, and all stay up, so that rounds can be interleaved.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self

from gateway.lab.bench import usage
from gateway.lab.gateway_process import ENVIRONMENT
from gateway.lab.lab import Lab
from gateway.lab.load import client, server
from gateway.lab.load.counters import Counters
from gateway.lab.peers import Peer, Upstream
from gateway.lab.process import LabError, Process, wait_until

#: The SOCKS5 server, and the host that clients ask for, by their names in the topology.
UPSTREAM: Final = "home"
TARGET: Final = "web"

#: Before each window: TCP's buffers grow to their size, and all clients get under way (seconds).
WARM_UP_S: Final = 0.25
START_TIMEOUT_S: Final = 30.0
PINGS: Final = 9

Kind = Literal["download", "upload", "exchange", "idle"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What may stand between client and server.

    ``start`` puts it on the lab's router, and returns its process; None for the kernel alone.
    """

    name: str
    start: Callable[[Lab], Process | None]


def forwarding() -> Candidate:
    """The kernel's own forwarding: no proxy, no SOCKS server; the most there is to have."""

    def start(lab: Lab) -> None:
        lab.router.sysctl("net.ipv4.ip_forward", "1")

    return Candidate("forwarding", start)


def this_gateway(
    mode: Literal["tproxy", "redirect"] = "tproxy",
    handshake: Literal["auto", "pipelined", "strict"] = "auto",
    pool: Literal["auto", "off"] = "auto",
) -> Candidate:
    """The gateway itself, named after what differs from the defaults.

    It logs what is wrong and no more, as its peers do.
    """

    def start(lab: Lab) -> Process:
        outbound = {**lab.socks(UPSTREAM), "handshake": handshake, "pool": pool}
        config = {
            **lab.config({"to": UPSTREAM}, outbounds={UPSTREAM: outbound}),
            "log": {"level": "warning"},
        }
        return lab.start_gateway(config, mode=mode).process

    differs: list[str] = [one for one in (mode, handshake) if one not in ("tproxy", "auto")]
    if pool == "off":
        differs.append("no pool")
    return Candidate(f"gateway ({', '.join(differs)})" if differs else "gateway", start)


def other(peer: Peer) -> Candidate:
    """Another proxy."""

    def start(lab: Lab) -> Process:
        directory = lab.directory / "peer"
        directory.mkdir()
        settings = lab.topology.upstreams[UPSTREAM]
        return peer.start(lab.router, Upstream(settings.addresses.ipv4, settings.port), directory)

    return Candidate(peer.name, start)


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
        """One of ``gateway.lab.load.client.COUNTERS``."""
        return self._counters.read()[name]

    def sample(self) -> Sample:
        """Now."""
        counts = self._counters.read()
        return Sample(
            time.monotonic(),
            self._rig.cpu_s(),
            counts["received"] + self._rig.counters.read()["received"],
            counts["exchanges"],
        )

    def window(self, seconds: float) -> tuple[Sample, Sample]:
        """Two samples in full swing, so far apart. Raises ``LabError`` where nothing moves."""
        start = self.sample()
        self.process.wait_until(
            lambda: self.sample().work > start.work, "the first bytes", START_TIMEOUT_S
        )
        time.sleep(WARM_UP_S)
        first = self.sample()
        time.sleep(seconds)
        last = self.sample()
        if last.work == first.work:
            raise LabError("nothing moves")
        return first, last

    def first_bytes_s(self) -> list[float]:
        """End them, and return the times to first byte of their exchanges, in order."""
        self.process.stop()
        times: list[float] = json.loads(self.process.log[-1])
        return times


class Rig:
    """A context manager: a candidate that is up, until the end."""

    def __init__(self, candidate: Candidate, wan_delay_ms: float = 0) -> None:
        """``wan_delay_ms``: as of ``Lab``."""
        self.candidate = candidate
        self._lab = Lab(wan_delay_ms=wan_delay_ms)
        self._runs = itertools.count()
        self.process: Process | None = None
        self.counters: Counters

    def __enter__(self) -> Self:
        """Build the lab, and start servers and candidate. Raises ``GatewayError``."""
        self._lab.__enter__()
        try:
            self._start_server()
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
        self._lab.close()

    def _start_server(self) -> None:
        path = self._lab.directory / "server.counters"
        self.counters = Counters(path, server.COUNTERS, create=True)
        upstream = self._lab.topology.upstreams[UPSTREAM]
        socks = f"{upstream.addresses.ipv4}:{upstream.port}"
        command = [sys.executable, "-m", "gateway.lab.load.server", str(path), socks]
        process = self._lab.internet.start("load", command, ENVIRONMENT)
        listens = self._lab.internet.listens
        process.wait_until(
            lambda: listens(upstream.addresses.ipv4, upstream.port), "the servers to listen"
        )

    @contextmanager
    def clients(self, kind: Kind, connections: int) -> Iterator[Clients]:
        """Clients in the LAN, until the context ends and the last connection is gone.

        Raises ``LabError`` where traffic went past the candidate, or connections stay.
        """
        path = self._lab.directory / f"clients{next(self._runs)}.counters"
        counters = Counters(path, client.COUNTERS, create=True)
        target = self._lab.topology.targets[TARGET].ipv4
        command = [sys.executable, "-m", "gateway.lab.load.client", str(path), target, kind]
        before = self.counters.read()
        process = self._lab.client("desk").start(
            path.stem, [*command, str(connections)], ENVIRONMENT
        )
        try:
            yield Clients(self, process, counters)
        finally:
            process.stop()
            wait_until(
                lambda: not self.counters.read()["open"],
                f"{self.candidate.name}: the last connection to end",
            )
        past = "direct" if self.process is not None else "socks"
        if self.counters.read()[past] != before[past]:
            raise LabError(f"{self.candidate.name}: connections went past it")

    def round_trip_s(self) -> float:
        """From the router to the SOCKS server and back: the median of a few pings."""
        server = self._lab.topology.upstreams[UPSTREAM].addresses.ipv4
        command = ["ping", "-n", "-c", str(PINGS), "-i", "0.02", server]
        times_ms = re.findall(r"time=([0-9.]+) ms", self._lab.router.run(command).stdout)
        return statistics.median(map(float, times_ms)) / 1e3

    def cpu_s(self) -> float:
        """CPU that the candidate has used (seconds); 0 for the kernel alone."""
        return 0.0 if self.process is None else usage.cpu_s(self.process.pid)

    def memory_bytes(self) -> int:
        """Memory that the candidate has now."""
        return 0 if self.process is None else usage.memory_bytes(self.process.pid)
