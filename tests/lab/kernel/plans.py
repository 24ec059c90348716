"""Plans as the gateway makes them, for the namespaces of these tests."""

from __future__ import annotations

from dataclasses import replace

from gateway.config.schema import Config
from gateway.plan.build import build_plan
from gateway.plan.host import Feature, HostFacts
from gateway.plan.model import Backend, Plan
from gateway.policy.compile import compile_policy

#: How long the dead-man sets live.
ALIVE_S = 600
_RULES = [
    {"destination": ["10.0.0.0/8", "172.16.0.0/12", "fd00::/8"], "to": "direct"},
    {"subnet": "kids", "port": [25, "6000-6999"], "to": "reject"},
    {"protocol": "udp", "port": 443, "to": "prohibited"},
    {"source": "192.168.20.66", "to": "silent"},
    {"to": "home"},
]


def plan(
    backend: Backend,
    *,
    tcp: str = "tproxy",
    on_failure: str = "closed",
    rules: list[dict[str, object]] | None = None,
    host_firewall: str = "allow",
) -> Plan:
    config = Config.model_validate(
        {
            "lan": {
                "interfaces": ["lan0"],
                "subnets": {"kids": ["192.168.20.0/24", "fd00:20::/64"]},
                "this_machine": True,
            },
            "inbound": {"tcp": tcp, "on_failure": on_failure, "host_firewall": host_firewall},
            "outbounds": {
                "home": {"type": "socks5", "server": "203.0.113.5", "port": 1080},
                "silent": {"type": "reject", "answer": "drop"},
                "prohibited": {"type": "reject", "answer": "icmp"},
            },
            "rules": rules or _RULES,
        }
    )
    host = HostFacts(features={"ipv6": Feature(True, "")})
    built = build_plan(config, compile_policy(config, {}), host, backend)
    # Nobody refreshes the dead-man sets here, and a slow machine's test takes more than 5 s.
    sets = (
        address_set if address_set.timeout_s is None else replace(address_set, timeout_s=ALIVE_S)
        for address_set in built.sets
    )
    return replace(built, sets=tuple(sets))
