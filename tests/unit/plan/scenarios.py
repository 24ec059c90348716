"""Named configurations and machines; each has its golden texts and is loaded by real tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_interface, ip_network
from typing import Any

from gateway.config.schema import Config
from gateway.plan.build import build_plan
from gateway.plan.host import DefaultRoute, Feature, HostFacts, Interface
from gateway.plan.model import Backend, Plan
from gateway.policy.compile import compile_policy
from gateway.policy.rulesets import RuleSetData

ROUTER = HostFacts(
    interfaces=(
        Interface("lo", 1, True, (ip_interface("127.0.0.1/8"), ip_interface("::1/128"))),
        Interface("wan0", 2, True, (ip_interface("203.0.113.7/24"),)),
        Interface("lan0", 3, True, (ip_interface("10.0.1.1/24"), ip_interface("fd00:1::1/64"))),
        Interface("lan1", 4, True, (ip_interface("10.0.2.1/24"), ip_interface("fd00:2::1/64"))),
    ),
    default_routes=(
        DefaultRoute("ipv4", "wan0", "203.0.113.1"),
        DefaultRoute("ipv6", "wan0", "fe80::1", from_ra=True),
    ),
    features={"ipv6": Feature(True, ""), "iptables-hops": Feature(True, "")},
)
ROUTER_V4 = HostFacts(ROUTER.interfaces, ROUTER.default_routes[:1], {"ipv6": Feature(False, "")})
#: One interface: its clients use it as their router, and so does its own router.
ONE_ARMED = HostFacts(
    interfaces=(Interface("lan0.7", 2, True, (ip_interface("10.0.1.2/24"),)),),
    default_routes=(DefaultRoute("ipv4", "lan0.7", "10.0.1.1"),),
    features={"ipv6": Feature(False, "")},
)

HOME: dict[str, Any] = {"home": {"type": "socks5", "server": "203.0.113.5"}}
SUBNETS = {"kids": ["10.0.2.0/24", "fd00:2::/64"], "office": ["10.0.1.0/24", "fd00:1::/64"]}
PRIVATE = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]


@dataclass(frozen=True)
class Scenario:
    config: dict[str, Any]
    host: HostFacts = ROUTER
    upstream_addresses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def plan(self, backend: Backend) -> Plan:
        config = Config.model_validate(self.config)
        rule_sets = {"private": RuleSetData.of_networks("private", tuple(map(ip_network, PRIVATE)))}
        return build_plan(
            config,
            compile_policy(config, rule_sets),
            self.host,
            backend,
            upstream_addresses=self.upstream_addresses,
        )


def _config(
    *rules: dict[str, Any],
    lan: dict[str, Any] | None = None,
    inbound: dict[str, Any] | None = None,
    outbounds: dict[str, Any] | None = None,
    lists: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "lan": lan or {"interfaces": ["lan0", "lan1"], "subnets": SUBNETS},
        "inbound": inbound or {},
        "outbounds": {**HOME, **(outbounds or {})},
        "rules": [*rules, {"to": "home"}],
        "lists": lists or {},
    }


_EVERY_KEY = (
    {"destination": "private", "to": "direct"},
    {"subnet": "kids", "protocol": "udp", "port": 443, "to": "reject"},
    {"source": "10.0.1.9", "destination": ["198.51.100.0/24", "2001:db8::/32"], "to": "home"},
    {"source": "fd00:1::9", "to": "direct"},
    {"interface": "lan1", "protocol": ["tcp", "icmp"], "to": "reject"},
    {"port": [22, "8000-8999"], "source_port": "1024-65535", "to": "direct"},
    {"port": [f"{port}-{port + 2}" for port in range(100, 140, 4)], "to": "direct"},
)

_ALL_TUN = {"tcp": "tun", "udp": "tun", "icmp": "tun"}

SCENARIOS = {
    "lan": Scenario(_config()),
    "lan_tun": Scenario(_config(*_EVERY_KEY[:2], inbound={"tcp": "tun"})),
    "lan_tun_all": Scenario(
        _config(*_EVERY_KEY[:2], inbound={"tcp": "tun", "udp": "tun", "icmp": "pretend"})
    ),
    "own_tun_open": Scenario(
        _config(
            lan={"interfaces": ["lan0"], "this_machine": True},
            inbound={"tcp": "tun", "udp": "off", "on_failure": "open"},
        )
    ),
    "default_route_tun": Scenario(
        _config(lan={"interfaces": ["lan0"]}, inbound=_ALL_TUN)
        | {"tun": {"capture": "default-route"}}
    ),
    "lan_redirect": Scenario(_config(inbound={"tcp": "redirect"})),
    "lan_open": Scenario(_config(inbound={"on_failure": "open"})),
    "lan_open_kids_closed": Scenario(
        _config(inbound={"on_failure": "open", "on_failure_of": {"kids": "closed"}})
    ),
    "lan_closed_kids_open": Scenario(
        _config(inbound={"on_failure_of": {"kids": "open", "office": "closed"}})
    ),
    "lan_redirect_open": Scenario(_config(inbound={"tcp": "redirect", "on_failure": "open"})),
    "lan_v4_only": Scenario(_config(*_EVERY_KEY), ROUTER_V4),
    "own": Scenario(_config(lan={"this_machine": True})),
    "own_redirect": Scenario(_config(lan={"this_machine": True}, inbound={"tcp": "redirect"})),
    "lan_and_own": Scenario(
        _config(*_EVERY_KEY, lan={"interfaces": "lan0", "subnets": SUBNETS, "this_machine": True})
    ),
    "rules": Scenario(_config(*_EVERY_KEY)),
    "rejects": Scenario(
        _config(
            {"subnet": "kids", "port": 25, "to": "reset"},
            {"subnet": "kids", "port": 465, "to": "icmp"},
            {"subnet": "kids", "to": "silent"},
            lan={"interfaces": "lan0", "subnets": SUBNETS, "this_machine": True},
            outbounds={
                "reset": {"type": "reject"},
                "icmp": {"type": "reject", "answer": "icmp"},
                "silent": {"type": "reject", "answer": "drop"},
            },
        )
    ),
    "preserve_source": Scenario(
        _config(
            {"subnet": "office", "to": "as_client"},
            inbound={"tcp": "redirect"},
            outbounds={"as_client": {"type": "direct", "preserve_source": True}},
        )
    ),
    "upstream_in_lan": Scenario(
        _config(outbounds={"near": {"type": "socks5", "server": "10.0.1.50"}}),
        upstream_addresses={"home": ("10.0.2.60", "fd00:2::60", "203.0.113.5")},
    ),
    "one_armed": Scenario(
        _config(lan={"interfaces": "lan0.7"}, inbound={"host_firewall": "leave"}), ONE_ARMED
    ),
    "queue": Scenario(
        _config(
            {"subnet": "kids", "domain": "+.video.example", "to": "reject"},
            {"any": [{"port": 22}, {"domain": "git.example"}], "to": "direct"},
            inbound={"classify": "nfqueue"},
        )
    ),
    "queue_open": Scenario(
        _config(
            {"domain": "+.video.example", "to": "reject"},
            inbound={"classify": "nfqueue", "on_failure": "open", "tcp": "redirect"},
        )
    ),
    "kernel_keys": Scenario(
        _config(
            {"device": "02:00:00:00:00:07", "to": "direct", "mark": "0x10/0xf0"},
            {"dscp": [46, 34], "not": [{"port": 443}, {"subnet": "kids"}], "to": "direct"},
            {"uid": [1000, 1001], "gid": 100, "to": "direct", "log": True},
            {"subnet": "kids", "goto": "evening"},
            lan={"interfaces": "lan0", "subnets": SUBNETS, "this_machine": True},
            lists={"evening": [{"port": 25, "to": "reject"}]},
        )
    ),
    "all_direct": Scenario(_config({"to": "direct"})),
    "all_direct_redirect": Scenario(_config({"to": "direct"}, inbound={"tcp": "redirect"})),
    "other_marks": Scenario({**_config(), "marks": {"base": 0x10}}),
}
# A rule after one that matches everything is refused by the loader.
for name in ("all_direct", "all_direct_redirect"):
    SCENARIOS[name].config["rules"].pop()
