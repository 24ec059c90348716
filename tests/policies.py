"""Random policies and the flows to try them on, for all that compares the engine with others."""

from __future__ import annotations

from itertools import product

import hypothesis.strategies as st

from gateway.config.rules import Rule
from gateway.config.schema import Config
from gateway.flow import Endpoint, FlowFacts, Protocol

OUTBOUNDS = {
    "home": {"type": "socks5", "server": "203.0.113.5"},
    "icmp": {"type": "reject", "answer": "icmp"},
    "silent": {"type": "reject", "answer": "drop"},
}
TARGETS = ["direct", "reject", *OUTBOUNDS]
INTERFACES = ["lan0", "lan1"]

#: Few, and nested, so that rules and packets often meet.
V4 = ["10.0.0.0/8", "10.0.1.0/24", "10.0.1.7/32", "192.0.2.0/24", "0.0.0.0/0"]
V6 = ["fd00::/8", "fd00:1::/64", "2001:db8::/32", "fd00:1::7/128", "::/0"]
HOSTS = {4: ["10.0.1.7", "10.9.9.9", "192.0.2.1"], 6: ["fd00:1::7", "fd00:2::1", "2001:db8::1"]}
PORTS = [22, 79, 80, 81, 443, 8000]

targets = st.sampled_from(TARGETS)
networks = st.lists(st.sampled_from([*V4, *V6]), max_size=4)
ports = st.lists(st.sampled_from([p for port in PORTS for p in (port, f"{port}-{port + 1}")]))
rules = st.builds(
    Rule.model_validate,
    st.fixed_dictionaries(
        {"to": targets},
        optional={
            "source": networks,
            "destination": networks,
            "interface": st.sampled_from(INTERFACES),
        },
    ).flatmap(
        lambda rule: st.one_of(
            st.fixed_dictionaries({"protocol": st.lists(st.sampled_from(["tcp", "udp", "icmp"]))}),
            st.fixed_dictionaries(
                {
                    "protocol": st.lists(st.sampled_from(["tcp", "udp"])),
                    "port": ports,
                    "source_port": ports,
                }
            ),
        ).map(lambda more: {**rule, **more})
    ),
)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """A configuration whose rules need the names above and nothing else."""
    return Config.model_validate(
        {
            "lan": {"interfaces": INTERFACES, "this_machine": True},
            "inbound": {"host_firewall": "leave"},
            "outbounds": OUTBOUNDS,
            "rules": [*draw(st.lists(rules, max_size=8)), Rule(to=draw(targets))],
        }
    )


def all_flows() -> list[FlowFacts]:
    """Every flow between the hosts and ports above, from each LAN interface."""
    ends = [*product(PORTS, PORTS)]
    return [
        FlowFacts(protocol, Endpoint(source, ours), Endpoint(destination, theirs), interface)
        for hosts in HOSTS.values()
        for source, destination in product(hosts, hosts)
        for protocol in Protocol
        for ours, theirs in (ends if protocol is not Protocol.ICMP else [(0, 0)])
        for interface in INTERFACES
    ]
