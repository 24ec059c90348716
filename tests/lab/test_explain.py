"""What ``gateway explain`` says of a flow is what then happens to it."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
import yaml
from datagrams import refused, talking
from traffic import (
    FAMILIES,
    Family,
    address,
    dial,
    new_socket,
    read_all,
    running,
    serve_http_on,
    target,
    upstream,
    within,
)

from gateway.assembly import assemble, findings
from gateway.explain.answer import Explanation, explain
from gateway.explain.question import ask
from gateway.lab.gateway_process import ENVIRONMENT, GatewayProcess, gateway_command
from gateway.lab.lab import Lab
from gateway.lab.process import wait_until

#: None of the ports that the kernel chooses from: another flow may have one of those.
SOURCE_PORTS = (20000, 20999)
PORTS = itertools.count(SOURCE_PORTS[0])
RULES: tuple[dict[str, Any], ...] = (
    {"subnet": "kids", "port": 8001, "to": "reject"},
    {"port": 8002, "domain": "+.video.example", "to": "reject"},
    {"port": 8002, "domain": "www.work.example", "to": "work"},
    {"port": 8002, "to": "home"},
    {"source_port": "{}-{}".format(*SOURCE_PORTS), "port": 8003, "to": "work"},
    {"interface": "kids0", "port": 8003, "to": "home"},
    {"protocol": "udp", "port": 443, "to": "reject"},
    {"port": 8004, "to": "silent"},
    {"port": 8005, "to": "gone"},
    {"to": "direct"},
)


class Case(NamedTuple):
    """A flow, who decides it, and where it must go."""

    client: str
    port: int
    by: str
    takes: str
    name: str = ""
    source_port: int = 0


CASES = (
    Case("kid", 8001, "kernel", "reject"),
    Case("desk", 8001, "kernel", "direct"),
    Case("kid", 8002, "listener", "reject", "www.video.example"),
    Case("kid", 8002, "listener", "work", "www.work.example"),
    Case("desk", 8002, "listener", "home", "www.other.example"),
    Case("desk", 8002, "listener", "home"),
    Case("desk", 8003, "listener", "work", source_port=SOURCE_PORTS[0]),
    Case("kid", 8003, "listener", "home"),
    Case("desk", 8003, "kernel", "direct"),
    Case("desk", 8005, "kernel", "reject"),
    Case("kid", 8006, "kernel", "direct"),
)


@pytest.fixture(scope="module")
def gateway(module_lab: Lab, backend: str, mode: str) -> Iterator[GatewayProcess]:
    serve_http_on(module_lab.internet, "8001-8099")
    config = module_lab.config(*RULES)
    config["outbounds"] |= {
        "silent": {"type": "reject", "answer": "drop"},
        "gone": {"type": "reject", "answer": "icmp"},
    }
    with running(module_lab, config, backend=backend, mode=mode) as gateway:
        yield gateway


def observed(lab: Lab, case: Case, family: Family) -> str:
    """Where the flow really went: the client was refused, or the server saw who came."""
    machine, host = lab.client(case.client), target(lab, family)
    port = next(PORTS) if case.source_port else 0
    request = f"GET /whoami HTTP/1.0\r\nHost: {case.name or host}\r\n\r\n"
    try:
        with dial(machine, host, case.port, source_port=port) as client:
            client.sendall(request.encode())
            answer = read_all(client)
    except TimeoutError:
        raise
    except OSError:
        return "reject"
    if not answer:
        return "reject"
    seen = json.loads(answer.partition(b"\r\n\r\n")[2])["peer"]
    whose = {address(machine, family): "direct"}
    whose |= {peer: name for name in ("home", "work") for peer in upstream(lab, name)}
    return whose[seen]


def explained(lab: Lab, gateway: GatewayProcess, *flows: tuple[str, str, str]) -> list[Explanation]:
    """The answers for flows (source, target, name), from the file, on the router."""

    def work() -> list[Explanation]:
        assembly = assemble(gateway.config_path)
        found = findings(assembly)
        return [explain(assembly, found, ask(source, to, name=name)) for source, to, name in flows]

    return within(lab.router, work)


def question(lab: Lab, case: Case, family: Family) -> tuple[str, str, str]:
    source, host = address(lab.client(case.client), family), target(lab, family)
    return f"[{source}]:{case.source_port or 50000}", f"[{host}]:{case.port}", case.name


def test_what_is_said_is_what_happens(
    module_lab: Lab, gateway: GatewayProcess, family: Family
) -> None:
    told = explained(module_lab, gateway, *(question(module_lab, c, family) for c in CASES))
    assert [(t.by, t.takes) for t in told] == [(case.by, case.takes) for case in CASES]
    assert [observed(module_lab, case, family) for case in CASES] == [t.takes for t in told]


def test_what_is_dropped_is_said_to_be(
    module_lab: Lab, gateway: GatewayProcess, family: Family
) -> None:
    case = Case("desk", 8004, "kernel", "reject")
    (told,) = explained(module_lab, gateway, question(module_lab, case, family))
    assert (told.fate, told.takes) == ("dropped", "reject")
    with new_socket(module_lab.client("desk"), target(module_lab, family)) as client:
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.connect((target(module_lab, family), 8004))


def test_datagrams(module_lab: Lab, gateway: GatewayProcess, family: Family) -> None:
    desk, host = module_lab.client("desk"), target(module_lab, family)
    source = address(desk, family)
    rejected, routed = explained(
        module_lab, gateway, (source, f"[{host}]:443/udp", ""), (source, f"[{host}]:8002/udp", "")
    )
    assert (rejected.by, rejected.takes) == ("kernel", "reject")
    assert (routed.by, routed.takes) == ("nobody", "direct")
    assert "no listener takes UDP: it is routed on, not proxied" in routed.notes
    with talking(desk, host, 443) as client:
        refused(client)
    with (
        new_socket(module_lab.internet, host, socket.SOCK_DGRAM) as server,
        new_socket(desk, host, socket.SOCK_DGRAM) as client,
    ):
        server.bind((host, 8002))
        client.sendto(b"hello", (host, 8002))
        assert server.recvfrom(100)[1][0] == source


def test_routes_are_those_of_the_kernel(
    module_lab: Lab, gateway: GatewayProcess, family: Family
) -> None:
    """The way that is told leaves by the interface that ``ip route get`` names."""
    host = target(module_lab, family)
    case = Case("desk", 8006, "kernel", "direct")
    routed, relayed = explained(
        module_lab,
        gateway,
        question(module_lab, case, family),
        question(module_lab, case._replace(port=8002), family),
    )
    said = module_lab.router.run(["ip", "-o", "route", "get", host]).stdout.split()
    device = said[said.index("dev") + 1]
    assert f"dev {device}" in routed.ways[0].route
    assert {way.proof for way in relayed.ways} == {"clear"}
    assert all(f"dev {device}" in way.route for way in relayed.ways)


def test_the_command(module_lab: Lab, gateway: GatewayProcess) -> None:
    source, to, name = question(module_lab, CASES[2], FAMILIES[0])
    command = ["explain", source, to, "--name", name, "-c", str(gateway.config_path)]

    def run(*more: str) -> str:
        done = module_lab.router.run(gateway_command(*command, *more), environment=ENVIRONMENT)
        return done.stdout

    told = json.loads(run("--json"))
    assert (told["fate"], told["takes"], told["interface"]) == ("diverted", "reject", "kids0")
    assert [tried["outcome"] for tried in told["rules"]] == ["missed", "matched"]
    assert "missed: port is 8002" in run()


def test_the_running_gateway_tells_and_is_asked_for_another_file(
    module_lab: Lab, gateway: GatewayProcess, tmp_path: Path
) -> None:
    """Live flows are explained as they are; under another file one would go elsewhere."""
    case = CASES[7]
    source, to, _ = question(module_lab, case, FAMILIES[0])
    query = urlencode({"source": source, "target": to})
    assert gateway.control.get(f"/explain?{query}")["takes"] == "home"
    other = tmp_path / "other.yaml"
    rules = [{"port": 8003, "to": "work"}, {"to": "direct"}]
    other.write_text(yaml.safe_dump(module_lab.config(*rules)))
    command = gateway_command("explain", "--live", "--count=1", "--json")
    options = ["--run-dir", str(gateway.run_dir)]
    live = module_lab.router.start("live", [*command, *options], ENVIRONMENT)
    machine, host = module_lab.client(case.client), target(module_lab, FAMILIES[0])

    def told() -> bool:
        return observed(module_lab, case, FAMILIES[0]) == "home" and not live.alive

    wait_until(told, "a flow to be explained", 60)
    assert live.wait() == 0
    assert json.loads(live.log[-1])["takes"] == "home"
    wait_until(lambda: not gateway.flows(0), "those flows to end")
    with dial(machine, host, case.port):
        wait_until(
            lambda: any(flow["state"] == "relaying" for flow in gateway.flows(0)), "a live flow"
        )
        done = module_lab.router.run(
            gateway_command("reload", "--shadow", str(other), "--json", *options),
            environment=ENVIRONMENT,
        )
        report = json.loads(done.stdout)
    assert [(f["outbound"], f["would_take"]) for f in report["rerouted"]] == [("home", "work")]
    assert observed(module_lab, case, FAMILIES[0]) == "home"
