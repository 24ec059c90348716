"""The kernel decides as the engine does: the same flows, asked of both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any, NamedTuple

import pytest
from datagrams import TELL, ask, refused, seen_by, served, talking, tell
from traffic import (
    FAMILIES,
    Family,
    address,
    dial,
    read_all,
    running,
    serve_http_on,
    target,
    upstream,
)

from gateway.config.schema import Config
from gateway.decision import Decision
from gateway.flow import Endpoint, FlowFacts, Protocol
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.policy.compile import compile_policy
from gateway.policy.engine import Policy
from gateway.policy.rulesets import RuleSetData

#: More prefixes than a rule lists one by one, so that it becomes a kernel set.
MANY = [str(n) for n in ip_network("198.51.100.128/25").subnets(new_prefix=31)]
MANY += ["198.51.100.30/32", "2001:db8:51::30/128"]

#: One rule of each kind; first match wins.
RULES: tuple[dict[str, Any], ...] = (
    {"subnet": "kids", "port": 8001, "to": "reject"},
    {"subnet": ["kids", "office"], "port": 8002, "to": "work"},
    {"source": ["192.168.20.0/25", "fd00:20::/64"], "port": "8003-8004", "to": "direct"},
    {"source": "192.168.10.10", "destination": "198.51.100.0/24", "port": 8003, "to": "home"},
    {"port": [8005, "8007-8009", 8011], "to": "home"},
    {"source_port": "20000-20009", "port": 8012, "to": "work"},
    {"protocol": "udp", "port": [443, "8020-8029"], "to": "reject"},
    {"interface": "kids0", "port": 8013, "to": "home"},
    {"interface": ["office0", "kids0"], "port": 8013, "to": "work"},
    {"rule_set": "many", "port": "8014-8015", "to": "home"},
    {"destination": ["many", "198.51.100.20"], "port": 8016, "to": "reject"},
    {"destination": "2001:db8:51::20", "port": 8016, "to": "work"},
    {"to": "direct"},
)


class Ask(NamedTuple):
    """A flow to ask for; ``source_port`` 0 is any."""

    client: str
    host: str
    port: int
    source_port: int = 0


# No source port twice: under REDIRECT two flows from one port to two hosts would become equal
# after NAT, which then gives one of them another source port, for the listener to see. None that
# the kernel may choose for a flow that asks for any (ip_local_port_range).
ASKS = [
    Ask(client, host, port, source_port)
    for client in ("kid", "desk")
    for number, host in enumerate(("web", "mirror", "blocked"))
    for port, source_port in (
        *((port, 0) for port in range(8001, 8017)),
        (8012, 20000 + number),
        (8012, 20010 + number),
    )
]


@pytest.fixture(scope="module")
def config(module_lab: Lab) -> dict[str, Any]:
    serve_http_on(module_lab.internet, "8001-8099")
    sets = {"many": {"type": "inline", "entries": MANY}}
    return module_lab.config(*RULES) | {"rule_sets": sets}


@pytest.fixture(scope="module")
def policy(config: dict[str, Any]) -> Policy:
    """The engine alone, without a kernel."""
    many = RuleSetData.of_networks("many", tuple(map(ip_network, MANY)))
    return compile_policy(Config.model_validate(config), {"many": many})


@pytest.fixture(scope="module")
def gateway(
    module_lab: Lab, config: dict[str, Any], backend: str, mode: str
) -> Iterator[GatewayProcess]:
    with running(module_lab, config, backend=backend, mode=mode) as gateway:
        yield gateway


INTERFACES = {"kid": "kids0", "desk": "office0"}


def decide(lab: Lab, policy: Policy, ask: Ask, family: Family) -> Decision:
    """The engine's answer, with the facts as the listener would have them."""
    source = Endpoint(address(lab.client(ask.client), family), ask.source_port or 50000)
    destination = Endpoint(target(lab, family, ask.host), ask.port)
    return policy.settle(FlowFacts(Protocol.TCP, source, destination, INTERFACES[ask.client]))


def observed(lab: Lab, ask: Ask, family: Family) -> str:
    """Where the flow really went: the client was refused, or the server saw who came."""
    machine, host = lab.client(ask.client), target(lab, family, ask.host)
    try:
        with dial(machine, host, ask.port, source_port=ask.source_port) as client:
            client.sendall(b"GET /whoami HTTP/1.0\r\n\r\n")
            answer = read_all(client)
    except ConnectionRefusedError:
        return "reject"
    seen = json.loads(answer.partition(b"\r\n\r\n")[2])["peer"]
    whose = {address(machine, family): "direct"}
    whose |= {peer: name for name in ("home", "work") for peer in upstream(lab, name)}
    return whose[seen]


def test_the_kernel_decides_as_the_engine_does(
    module_lab: Lab, gateway: GatewayProcess, policy: Policy, family: Family
) -> None:
    """Every rule kind; and what is direct or refused never enters the gateway."""
    before = gateway.counters().get("flows_accepted", 0)
    wanted = {ask: decide(module_lab, policy, ask, family).outbound for ask in ASKS}
    assert set(wanted.values()) == {"direct", "home", "work", "reject"}
    assert {ask: observed(module_lab, ask, family) for ask in ASKS} == wanted
    relayed = sum(outbound in ("home", "work") for outbound in wanted.values())
    assert gateway.counters()["flows_accepted"] == before + relayed


def test_every_rule_of_the_table_fires(module_lab: Lab, policy: Policy) -> None:
    """Else the comparison above would prove less than it seems to."""
    fired = {
        decide(module_lab, policy, ask, family).rule_index for ask in ASKS for family in FAMILIES
    }
    udp = {index for index, rule in enumerate(RULES) if rule.get("protocol") == "udp"}
    assert fired == set(range(len(RULES))) - udp


def test_udp_is_refused_at_once_or_routed(
    module_lab: Lab, gateway: GatewayProcess, family: Family
) -> None:
    """A rejected port gives ICMP port unreachable; any other reaches the server as it is."""
    desk, host = module_lab.client("desk"), target(module_lab, family)
    with talking(desk, host, 443) as client:
        refused(client)
    with served() as servers, talking(desk, host, TELL) as client:
        servers.add(module_lab.internet, host, TELL, tell)
        assert seen_by(ask(client))[::2] == (address(desk, family), b"hello")
