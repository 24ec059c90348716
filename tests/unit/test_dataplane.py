"""The data plane of one process: what a reload replaces is closed, and nothing else."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, replace
from functools import partial

import pytest

from gateway import logs
from gateway.blueprint import Blueprint, ListenOn, Recipe
from gateway.dataplane import PAGE, DataPlane
from gateway.errors import UpstreamFailure
from gateway.facts import HERE
from gateway.flow import Endpoint
from gateway.kernel import reactor
from gateway.kernel.sockets import accept, local_endpoint, open_listener
from gateway.outbound import reject
from gateway.policy.engine import Policy
from gateway.policy.rule import CompiledRule
from gateway.routing import FlowTimeouts, OwnTraffic
from gateway.sniffing import SniffLimits
from gateway.udp.flow import UdpSettings


@dataclass
class Noted:
    """An outbound that notes that it was closed."""

    name: str
    closed: list[str]

    def close(self) -> None:
        self.closed.append(self.name)


def noted(name: str, closed: list[str], **_: object) -> Noted:
    return Noted(name, closed)


def blueprint(outbounds: dict[str, Recipe]) -> Blueprint:
    return Blueprint(
        policy=Policy([CompiledRule(0, "rules[0] -> home", "home")]),
        outbounds=outbounds,
        timeouts=FlowTimeouts(10, 1000, 100),
        sniff=SniffLimits(),
        udp=UdpSettings(60, 10, 180, 100, 10, symmetric=False),
        own=OwnTraffic(),
        listen_on=ListenOn("redirect", 0, ipv6=False),
        bypass=None,
        detect_loops=True,
        log_level="info",
        log_format="text",
        facts=HERE,
    )


def test_an_outbound_is_closed_when_it_is_replaced_or_gone_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    closed: list[str] = []

    def recipe(name: str) -> partial[Noted]:
        return partial(noted, name, closed)

    first = blueprint({name: recipe(name) for name in ("home", "changed", "gone")})
    outbounds = {"home": recipe("home"), "changed": recipe("otherwise")}

    async def scenario() -> None:
        plane = DataPlane(first)
        plane.adopt(first)
        assert closed == []
        plane.adopt(replace(first, outbounds=outbounds))
        assert sorted(closed) == ["changed", "gone"]
        closed.clear()
        plane.close()
        assert sorted(closed) == ["home", "otherwise"]

    reactor.run(scenario())


def test_flows_come_in_pages_the_latest_that_ended_first() -> None:
    count = PAGE + 2

    async def scenario() -> None:
        plane = DataPlane(
            blueprint({"home": partial(reject.refusal, "home", UpstreamFailure.REJECTED, "")})
        )
        listener = open_listener("127.0.0.1", 0, transparent=False)
        listener.setblocking(True)
        for _ in range(count):
            with socket.create_connection(local_endpoint(listener)):
                client, source = accept(listener)
                plane._dispatcher.accepted(client, source, Endpoint("192.0.2.1", 80))
        listener.close()
        (closed,) = plane.flows(count)
        ends = [flow.started + flow.duration_s for flow in closed]
        assert ends == sorted(ends, reverse=True)
        assert len(closed) == count
        assert [len(page) for page in plane.flows(3)] == [3]
        assert list(plane.flows(0)) == []
        streams = plane._dispatcher
        streams._relaying.update({flow.id: flow for flow in streams.recent})
        assert [len(page) for page in plane.flows(0)] == [PAGE, 2]
        streams._relaying.clear()
        plane.close()

    reactor.run(scenario())


def test_a_bug_in_one_time_out_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = blueprint({"home": partial(reject.refusal, "home", UpstreamFailure.REJECTED, "")})
    hasty = replace(first, timeouts=FlowTimeouts(0.01, 1000, 100))

    async def scenario() -> None:
        plane = DataPlane(hasty)
        again = asyncio.Event()
        rounds = iter([ValueError("a bug"), None])

        def expire(_: float) -> None:
            problem = next(rounds, None)
            if problem is not None:
                raise problem
            again.set()

        monkeypatch.setattr(plane._dispatcher, "expire_idle", expire)
        timing = asyncio.create_task(plane.time_flows())
        async with asyncio.timeout(10):
            await again.wait()
        timing.cancel()
        plane.close()

    reactor.run(scenario())
    assert [record.getMessage()[:4] for record in caplog.records] == ["bug:"]
