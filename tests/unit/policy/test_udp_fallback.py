"""What datagrams get where the outbound carries none."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.config.schema import Config
from gateway.decision import DIRECT, REJECT
from gateway.flow import Endpoint, FlowFacts, Protocol
from gateway.policy.compile import compile_policy
from gateway.policy.engine import Policy
from gateway.policy.udp_fallback import without_udp

CLIENT = Endpoint("192.168.10.10", 40000)
UNABLE = frozenset({"home"})


def policy(*rules: dict[str, Any]) -> Policy:
    outbounds = {
        name: {"type": "socks5", "server": f"203.0.113.{number}"}
        for number, name in enumerate(("home", "work"), 5)
    }
    config = {"lan": {"interfaces": ["lan0"]}, "outbounds": outbounds, "rules": rules}
    return compile_policy(Config.model_validate(config), {})


def outbound(policy: Policy, protocol: Protocol, port: int, host: str = "198.51.100.10") -> str:
    facts = FlowFacts(protocol, CLIENT, Endpoint(host, port))
    return policy.settle(facts).outbound


@pytest.mark.parametrize(
    ("fallback", "expected"), [("reject", REJECT), ("direct", DIRECT), ("next", "work")]
)
def test_other_udp_gets_what_the_rule_says_and_quic_is_refused(
    fallback: str, expected: str
) -> None:
    written = policy(
        {"destination": "198.51.100.0/24", "to": "home", "udp_fallback": fallback}, {"to": "work"}
    )
    changed = without_udp(written, UNABLE)
    assert outbound(changed, Protocol.UDP, 443) == REJECT
    assert outbound(changed, Protocol.UDP, 3478) == expected
    assert outbound(changed, Protocol.TCP, 443) == "home"
    assert outbound(changed, Protocol.TCP, 80) == "home"
    assert outbound(changed, Protocol.UDP, 443, "192.0.2.1") == "work"
    assert outbound(written, Protocol.UDP, 443) == "home"


@pytest.mark.parametrize("fallback", ["reject", "direct", "next"])
def test_the_last_rule_stays_the_default(fallback: str) -> None:
    """There is nothing below it that UDP could be left to."""
    changed = without_udp(policy({"to": "home", "udp_fallback": fallback}), UNABLE)
    expected = DIRECT if fallback == "direct" else REJECT
    assert outbound(changed, Protocol.UDP, 53) == expected
    assert outbound(changed, Protocol.TCP, 53) == "home"
    assert outbound(changed, Protocol.ICMP, 0) == "home"


def test_ports_and_protocols_of_the_rule_stay() -> None:
    changed = without_udp(
        policy(
            {"port": [80, "400-500"], "to": "home", "udp_fallback": "next"},
            {"port": 53, "protocol": "udp", "to": "home", "udp_fallback": "next"},
            {"protocol": "tcp", "to": "home"},
            {"to": "work"},
        ),
        UNABLE,
    )
    assert outbound(changed, Protocol.UDP, 443) == REJECT
    assert outbound(changed, Protocol.UDP, 450) == "work"
    assert outbound(changed, Protocol.UDP, 53) == "work"
    assert outbound(changed, Protocol.TCP, 450) == "home"
    assert outbound(changed, Protocol.TCP, 53) == "home"
    assert [rule.index for rule in changed.rules] == [0, 0, 2, 3]


def test_where_all_carry_udp_nothing_changes() -> None:
    written = policy({"to": "home"})
    assert without_udp(written, frozenset()) is written
    assert without_udp(written, frozenset({"work"})).rules == written.rules
