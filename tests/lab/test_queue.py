"""``classify: nfqueue``: flows decided by their first packet, with a real gateway."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from datagrams import refused, talking
from traffic import (
    address,
    dial,
    peer_seen,
    read,
    running,
    serve_http_on,
    target,
    upstream,
    wait_counter,
    within,
)

from gateway.assembly import assemble, findings
from gateway.explain.answer import Explanation, explain
from gateway.explain.question import ask
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.process import LabError

#: Holds at any time, which the kernel cannot know.
ALWAYS = {"weekday": "mon-sun"}
RULES: tuple[dict[str, Any], ...] = (
    {"port": 8001, **ALWAYS, "to": "reject"},
    {"port": 8002, **ALWAYS, "to": "direct"},
    {"port": 8003, **ALWAYS, "to": "work"},
    {"protocol": "udp", "port": 8004, **ALWAYS, "to": "reject"},
    {"protocol": "icmp", **ALWAYS, "to": "silent"},
    {"port": 8005, "domain": "+.nowhere.example", "to": "reject"},
    {"to": "home"},
)


def settings(lab: Lab, on_failure: str = "closed") -> dict[str, Any]:
    config = lab.config(*RULES)
    config["outbounds"]["silent"] = {"type": "reject", "answer": "drop"}
    config["inbound"] |= {"classify": "nfqueue", "on_failure": on_failure}
    return config


@pytest.fixture(scope="module")
def gateway(module_lab: Lab) -> Iterator[GatewayProcess]:
    serve_http_on(module_lab.internet, "8001-8099")
    # The nftables backend is the same plan; this kernel may have no nft_queue.
    with running(module_lab, settings(module_lab), backend="iptables", mode="tproxy") as gateway:
        yield gateway


def test_the_first_packet_decides(module_lab: Lab, gateway: GatewayProcess, family: int) -> None:
    """And what is direct or refused has not been accepted by anybody here."""
    kid = module_lab.client("kid")
    web = target(module_lab, family)
    before = gateway.counters().get("flows_accepted", 0)
    with pytest.raises(ConnectionRefusedError):
        dial(kid, web, 8001)
    assert peer_seen(kid, web, 8002) == address(kid, family)
    assert gateway.counters().get("flows_accepted", 0) == before
    assert peer_seen(kid, web, 8003) in upstream(module_lab, "work")
    # The name is not in the first packet: a listener looks, and finds none.
    assert peer_seen(kid, web, 8005) in upstream(module_lab, "home")
    counters = gateway.counters()
    assert counters["flows_accepted"] == before + 2
    assert min(counters[f"queue_{what}"] for what in ("refused", "direct", "undecided")) > 0


def test_datagrams_and_pings_are_asked_about_too(
    module_lab: Lab, gateway: GatewayProcess, family: int
) -> None:
    kid = module_lab.client("kid")
    web = target(module_lab, family)
    with talking(kid, web, 8004) as client:
        refused(client)
    before = gateway.counters().get("queue_dropped", 0)
    assert kid.run(["ping", "-c", "2", "-i", "0.2", "-W", "1", web], check=False).returncode == 1
    wait_counter(gateway, "queue_dropped", before + 1)


def test_explain_says_what_the_queue_does(
    module_lab: Lab, gateway: GatewayProcess, family: int
) -> None:
    """Of the flows that the tests above send."""
    source, web = address(module_lab.client("kid"), family), target(module_lab, family)
    cases = {
        "8001": ("queue", "asked", "reject"),
        "8002": ("queue", "asked", "direct"),
        "8003": ("queue", "asked", "work"),
        "8005": ("queue", "asked", "home"),
        "8006": ("listener", "diverted", "home"),
        "8004/udp": ("queue", "asked", "reject"),
        "icmp": ("queue", "asked", "reject"),
    }
    host = f"[{web}]" if ":" in web else web
    targets = [f"{host}/icmp" if port == "icmp" else f"{host}:{port}" for port in cases]

    def work() -> list[Explanation]:
        assembly = assemble(gateway.config_path)
        found = findings(assembly)
        return [explain(assembly, found, ask(source, to)) for to in targets]

    told = within(module_lab.router, work)
    assert [(t.by, str(t.fate), t.takes) for t in told] == list(cases.values())
    # The chain that asks is the last that netfilter has to do with the packet.
    assert all(t.netfilter[-1].chain == "ask" for t in told if t.by == "queue")
    assert all(t.rule == t.rules[-1].rule for t in told)
    waits = [port for port, t in zip(cases, told, strict=True) if "waited for" in str(t.notes)]
    assert waits == ["8005"]


def assert_answered(flow: socket.socket) -> None:
    """One request on a flow that stays open, and the whole answer."""
    flow.sendall(b"GET /whoami HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        answer += read(flow, 1)
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("on_failure", ["closed", "open"])
def test_with_the_gateway_dead(lab: Lab, on_failure: str) -> None:
    """A direct flow goes on in the kernel; new ones meet what ``on_failure`` says."""
    kid, web = lab.client("kid"), target(lab, 4)
    serve_http_on(lab.internet, "8001-8099")
    config = settings(lab, on_failure)
    gateway = lab.start_gateway(config, backend="iptables", mode="tproxy")
    with dial(kid, web, 8002) as open_flow:
        assert_answered(open_flow)
        gateway.kill()
        assert_answered(open_flow)
    if on_failure == "open":
        # Nobody says what the rules want: the queue lets all of it go.
        assert peer_seen(kid, web, 8001) == address(kid, 4)
    else:
        with pytest.raises(LabError):
            peer_seen(kid, web, 8002, timeout_s=2)
