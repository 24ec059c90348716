"""The data plane of one process: what a reload replaces is closed, and nothing else."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import partial

import pytest

from gateway import logs
from gateway.blueprint import Blueprint, ListenOn
from gateway.dataplane import DataPlane
from gateway.dispatch import FlowTimeouts, OwnTraffic
from gateway.dispatch_udp import UdpSettings
from gateway.facts import HERE
from gateway.policy.engine import Policy
from gateway.policy.rule import CompiledRule
from gateway.sniffing import SniffLimits


@dataclass
class Noted:
    """An outbound that notes that it was closed."""

    name: str
    closed: list[str]

    def close(self) -> None:
        self.closed.append(self.name)


def noted(name: str, closed: list[str], **_: object) -> Noted:
    return Noted(name, closed)


def test_an_outbound_is_closed_when_it_is_replaced_or_gone_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    closed: list[str] = []

    def recipe(name: str) -> partial[Noted]:
        return partial(noted, name, closed)

    first = Blueprint(
        policy=Policy([CompiledRule(0, "rules[0] -> home", "home")]),
        outbounds={name: recipe(name) for name in ("home", "changed", "gone")},
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

    asyncio.run(scenario())
