"""A running gateway that is only values, served on a real unix socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.control.api import ControlServer
from gateway.control.running import (
    FlowRecord,
    FlowState,
    Health,
    OutboundHealth,
    PlanReport,
    ReloadReport,
)
from gateway.explain.answer import Explanation
from gateway.explain.question import QuestionError
from gateway.explain.shadow import Rerouted, ShadowReport
from gateway.flow import CloseReason, Endpoint
from gateway.groups.health import Result
from gateway.groups.report import GroupRecord, MemberRecord
from gateway.plan.model import RulePlacement

LIVE = FlowRecord(
    id=7,
    client=Endpoint("192.168.20.5", 40000),
    destination=Endpoint("2001:db8::1", 443),
    rule="rules[2] subnet=kids -> home",
    outbound="home",
    interface="eth1",
    started=1_700_000_000.0,
    state=FlowState.RELAYING,
    bytes_up=1500,
    bytes_down=2_500_000,
    duration_s=61.23456,
    name="www.video.example",
    sniffed="tls",
)
CLOSED = FlowRecord(
    id=6,
    client=Endpoint("192.168.20.5", 39999),
    destination=Endpoint("198.51.100.10", 80),
    rule="rules[3] -> home",
    outbound="home",
    interface="",
    started=1_700_000_000.0,
    state=FlowState.CLOSED,
    bytes_up=0,
    bytes_down=0,
    duration_s=0.5,
    close_reason=CloseReason.UPSTREAM_REFUSED,
    detail="connection refused",
)

_PROBES = (Result(1.0, 0.012), Result(2.0, 0.5, "refused"))
GROUP = GroupRecord(
    "auto",
    "fallback",
    ("away",),
    "the first that is well: 20 ms; home is down: refused",
    (
        MemberRecord(
            "home",
            "down",
            False,
            0.0,
            12.0,
            "refused",
            (Result(1.0, 0.012), Result(2.0, 0.5, "refused")),
        ),
        MemberRecord("away", "up", True, 1.0, 20.0, "", (Result(1.0, 0.02),)),
        MemberRecord("direct", "unknown", False, None, None, "", ()),
    ),
)


@dataclass
class FakeRunning:
    """Answers as told; ``error`` is raised by whatever is awaited or asked for counters."""

    error: Exception | None = None
    changes: tuple[str, ...] = ("rules[1] is new",)
    outbounds: tuple[OutboundHealth, ...] = (
        OutboundHealth(
            "home", "socks5", ok=True, strategy="mark", route="203.0.113.5 via 203.0.113.1 dev eth0"
        ),
    )
    without_udp: tuple[str, ...] = ()
    asked_recent: list[int] = field(default_factory=list)
    reloads: int = 0
    known_groups: tuple[GroupRecord, ...] = ()
    selected: list[tuple[str, str]] = field(default_factory=list)

    async def health(self) -> Health:
        return Health(
            state="running",
            version="0.1.0",
            pid=4242,
            config="/etc/gateway/gateway.yaml",
            started=1_700_000_000.0,
            uptime_s=3723.0,
            mode="tproxy",
            backend="nftables",
            backend_reason="nftables works here",
            flows=1,
            outbounds=self.outbounds,
            without_udp=self.without_udp,
        )

    async def flows(self, recent: int) -> list[FlowRecord]:
        self.asked_recent.append(recent)
        return [LIVE, CLOSED][: 1 + recent]

    async def groups(self) -> tuple[GroupRecord, ...]:
        return self.known_groups

    async def select(self, group: str, member: str) -> GroupRecord:
        if self.error:
            raise self.error
        self.selected.append((group, member))
        return GROUP

    async def counters(self) -> dict[str, int]:
        if self.error:
            raise self.error
        return {"accepted": 12, "refused.loop": 0}

    async def plan(self) -> PlanReport:
        if self.error:
            raise self.error
        placement = RulePlacement(0, "rules[0] -> direct", "kernel", "direct is routed")
        return PlanReport("table inet gateway {\n}\n", (placement,), "+ rule pre\n")

    async def reload(self) -> ReloadReport:
        if self.error:
            raise self.error
        self.reloads += 1
        return ReloadReport(self.changes)

    async def explain(self, words: Mapping[str, str]) -> Explanation:
        raise QuestionError(" ".join(f"{key}={word}" for key, word in words.items()), "cure")

    async def shadow(self, path: Path) -> ShadowReport:
        if self.error:
            raise self.error
        moved = Rerouted(
            7,
            "tcp",
            "10.0.0.2:1",
            "1.1.1.1:443",
            "a.example",
            "home",
            "rules[0]",
            "vpn",
            "rules[1]",
        )
        return ShadowReport((str(path),), 3, (moved,))


@contextmanager
def _loop_in_thread() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def running() -> FakeRunning:
    return FakeRunning()


@pytest.fixture
def serve(run_dir: Path) -> Iterator[Callable[[FakeRunning], ControlServer]]:
    """A function that serves a fake until the end of the test."""
    servers: list[ControlServer] = []
    with _loop_in_thread() as loop:

        def start(running: FakeRunning) -> ControlServer:
            server = ControlServer(running, run_dir)
            asyncio.run_coroutine_threadsafe(server.start(), loop).result(60)
            servers.append(server)
            return server

        yield start
        for server in servers:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result(60)


@pytest.fixture
def served(serve: Callable[[FakeRunning], ControlServer], running: FakeRunning) -> FakeRunning:
    serve(running)
    return running
