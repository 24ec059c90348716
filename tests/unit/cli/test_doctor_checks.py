"""Each check of the doctor: what it sees, how bad it finds it, and that it names a cure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_interface
from typing import Any

import pytest

from gateway.cli import clash_checks, config_checks, machine_checks
from gateway.cli.doctor import judge
from gateway.cli.examination import Check, Examined, Status
from gateway.config.schema import Config
from gateway.errors import CapabilityError, ConfigError, GatewayError, Problem
from gateway.kernel.guard import Finding, Outcome
from gateway.kernel.readings import (
    ForeignDrop,
    ForeignRoute,
    ForeignRule,
    Listener,
    Readings,
)
from gateway.marks import Mark
from gateway.plan.backend import NEEDS
from gateway.plan.egress import Egress
from gateway.plan.host import DefaultRoute, Feature, HostFacts, Interface
from gateway.plan.lookups import Lookup

FEATURES = ("ipv6", *(name for needs in NEEDS.values() for name in needs))

ALL_TUN = {"tcp": "tun", "udp": "tun", "icmp": "tun"}
LOOKUP = Lookup(
    "home", "proxy.example", "203.0.113.2", "192.0.2.53", "rules[0] {to: home}", certain=True
)
HEALTHY = Examined(
    facts=HostFacts(
        interfaces=(
            Interface("lo", 1, up=True, addresses=(ip_interface("127.0.0.1/8"),)),
            Interface("eth0", 2, up=True, addresses=(ip_interface("203.0.113.2/24"),)),
            Interface("eth1", 3, up=True, addresses=(ip_interface("192.168.1.1/24"),)),
        ),
        default_routes=(
            DefaultRoute("ipv4", "eth0", "203.0.113.1"),
            DefaultRoute("ipv6", "eth0", "fe80::1", from_ra=True),
        ),
        features={name: Feature(available=True, detail="works") for name in FEATURES},
        sysctls={
            "net.ipv4.ip_forward": "1",
            "net.ipv6.conf.all.forwarding": "0",
            "net.ipv4.conf.all.rp_filter": "0",
            "net.ipv4.conf.eth0.rp_filter": "2",
            "net.ipv4.conf.eth1.rp_filter": "1",
            "net.ipv4.conf.all.src_valid_mark": "0",
            "net.ipv6.conf.eth0.accept_ra": "1",
        },
    ),
    readings=Readings(
        python="3.11.2",
        kernel="6.1.0",
        capabilities=frozenset({"CAP_NET_ADMIN", "CAP_NET_RAW"}),
        file_limit=262_144,
        rules=(
            ForeignRule("ipv4", 0, 255, None),
            ForeignRule("ipv4", 32_766, 254, None),
            ForeignRule("ipv4", 5210, 254, Mark(0x8_0000, 0xFF_0000)),  # a mesh VPN
            ForeignRule("ipv4", 32_764, 51_820, Mark(51_820, 0xFFFF_FFFF)),  # wg-quick
        ),
    ),
    config=Config.model_validate(
        {
            "lan": {"interfaces": ["eth1"]},
            "outbounds": {"home": {"type": "socks5", "server": "203.0.113.5"}},
            "rules": [{"to": "home"}],
        }
    ),
    paths=(
        Finding(Egress("home", "203.0.113.5"), Outcome.CLEAR, "via 203.0.113.1 dev eth0 table 254"),
    ),
)


def with_sysctl(**values: str) -> Examined:
    """HEALTHY with other settings; ``__`` stands for a dot."""
    changed = {key.replace("__", "."): value for key, value in values.items()}
    sysctls = {**HEALTHY.facts.sysctls, **changed}
    return replace(HEALTHY, facts=replace(HEALTHY.facts, sysctls=sysctls))


def with_readings(**values: Any) -> Examined:
    return replace(HEALTHY, readings=replace(HEALTHY.readings, **values))


def with_facts(**values: Any) -> Examined:
    return replace(HEALTHY, facts=replace(HEALTHY.facts, **values))


def with_config(**sections: Any) -> Examined:
    assert HEALTHY.config
    data = {**HEALTHY.config.model_dump(mode="json", exclude_defaults=True), **sections}
    return replace(HEALTHY, config=Config.model_validate(data))


def only(checks: Iterator[Check], status: Status) -> Check:
    (found,) = [check for check in checks if check.status is status]
    return found


def test_a_healthy_machine_has_no_complaint() -> None:
    checks = list(judge(HEALTHY))
    assert [check for check in checks if check.status is not Status.OK] == []
    assert len(checks) > 20


def test_every_complaint_has_a_cure() -> None:
    ill = replace(
        HEALTHY,
        facts=HostFacts(sysctls={"net.ipv4.ip_forward": "0"}),
        readings=Readings(
            python="3.11.2",
            kernel="6.1.0",
            capabilities=frozenset(),
            file_limit=100,
            rules=(ForeignRule("ipv4", 8805, 8801, Mark(0x0F00_0000, 0x0F00_0000)),),
            routes=(ForeignRoute("ipv4", 8801, "10.0.0.0/8"),),
            drops=(ForeignDrop("a", "input"), ForeignDrop("b", "forward")),
            listeners=(Listener("0.0.0.0", 7895, 12, "other"),),
        ),
        config=None,
        config_error=ConfigError((Problem("g.yaml", 1, 1, "lan", "missing key"),)),
        paths=(Finding(Egress("home", "1.2.3.4"), Outcome.LOOP, "local", "it loops", "fix it"),),
        leftovers=("3 ip rules",),
    )
    complaints = [check for check in judge(ill) if check.status is not Status.OK]
    assert len(complaints) > 12
    assert [check.name for check in complaints if not check.cure] == []


Check1 = Callable[[Examined], Iterator[Check]]


@pytest.mark.parametrize(
    ("check", "seen", "status", "evidence", "cure"),
    [
        pytest.param(
            machine_checks.privileges,
            with_readings(capabilities=frozenset({"CAP_NET_ADMIN"})),
            Status.FAIL,
            "CAP_NET_RAW",
            "root",
            id="python-iptables needs CAP_NET_RAW",
        ),
        pytest.param(
            machine_checks.features,
            with_facts(
                features={**HEALTHY.facts.features, "ipset": Feature(False, "no ipset command")}
            ),
            Status.WARN,
            "no ipset command",
            "apt-get install ipset",
            id="ipset missing",
        ),
        pytest.param(
            machine_checks.file_limit,
            with_readings(file_limit=1024),
            Status.WARN,
            "1024",
            "LimitNOFILE",
            id="few descriptors",
        ),
        pytest.param(
            machine_checks.reverse_path,
            replace(
                with_config(
                    outbounds={"second": {"type": "direct", "interface": "wwan0"}},
                    rules=[{"to": "second"}],
                ),
                facts=with_sysctl(net__ipv4__conf__wwan0__rp_filter="1").facts,
            ),
            Status.WARN,
            "second uplink",
            "net.ipv4.conf.wwan0.rp_filter=2",
            id="strict validation on a second uplink",
        ),
        pytest.param(
            machine_checks.bridges,
            replace(
                with_sysctl(**{"net__bridge__bridge-nf-call-iptables": "1"}),
                readings=replace(HEALTHY.readings, bridges=frozenset({"eth1"})),
            ),
            Status.FAIL,
            "eth1 is a bridge",
            "bridge-nf-call-iptables=0",
            id="Docker's bridge setting with a LAN bridge",
        ),
        pytest.param(
            machine_checks.router_advertisements,
            with_sysctl(net__ipv6__conf__all__forwarding="1"),
            Status.FAIL,
            "will expire",
            "net.ipv6.conf.eth0.accept_ra=2",
            id="forwarding without accept_ra 2",
        ),
        pytest.param(
            config_checks.fast_open,
            replace(
                with_config(
                    outbounds={
                        "far": {"type": "socks5", "server": "203.0.113.5", "fast_open": True}
                    },
                    rules=[{"to": "far"}],
                ),
                facts=with_sysctl(net__ipv4__tcp_fastopen="1026").facts,
            ),
            Status.WARN,
            "fast_open of far",
            "net.ipv4.tcp_fastopen=1027",
            id="TCP Fast Open without the kernel's consent",
        ),
        pytest.param(
            clash_checks.priorities,
            with_readings(rules=(ForeignRule("ipv6", 8801, 100, None),)),
            Status.FAIL,
            "8801",
            "ip rule del pref 8801",
            id="a rule between ours",
        ),
        pytest.param(
            clash_checks.mark_bits,
            with_readings(rules=(ForeignRule("ipv4", 100, 100, Mark(0x0100_0000, 0x0F00_0000)),)),
            Status.FAIL,
            "0x01000000/0x0f000000",
            "marks.base",
            id="our bits in another's mark",
        ),
        pytest.param(
            clash_checks.mark_bits,
            with_readings(rules=(ForeignRule("ipv4", 100, 100, Mark(0x0100_0001, 0xFFFF_FFFF)),)),
            Status.FAIL,
            "fwmark",
            "marks.base",
            id="our bits in a mark without a mask",
        ),
        pytest.param(
            clash_checks.tables,
            with_readings(rules=(ForeignRule("ipv4", 100, 8801, None),)),
            Status.FAIL,
            "8801",
            "ip rule del pref 100",
            id="another looks up our table",
        ),
        pytest.param(
            clash_checks.tables,
            with_readings(routes=(ForeignRoute("ipv4", 8802, "10.0.0.0/8"),)),
            Status.FAIL,
            "10.0.0.0/8",
            "ip route del 10.0.0.0/8 table 8802",
            id="another's route in our table",
        ),
        pytest.param(
            clash_checks.input_firewall,
            replace(
                with_config(inbound={"host_firewall": "leave"}),
                readings=replace(
                    HEALTHY.readings, drops=(ForeignDrop("nft ip filter INPUT", "input"),)
                ),
            ),
            Status.FAIL,
            "nft ip filter INPUT",
            "host_firewall: allow",
            id="input drops and we may not change it",
        ),
        pytest.param(
            clash_checks.input_firewall,
            replace(
                with_config(inbound={"backend": "nftables"}),
                readings=replace(
                    HEALTHY.readings,
                    drops=(ForeignDrop("iptables-legacy INPUT", "input", legacy=True),),
                ),
            ),
            Status.FAIL,
            "iptables-legacy INPUT",
            "inbound.backend: iptables",
            id="legacy input drops beside the nftables backend",
        ),
        pytest.param(
            clash_checks.forward_firewall,
            with_readings(drops=(ForeignDrop("nft ip filter FORWARD", "forward"),)),
            Status.WARN,
            "nft ip filter FORWARD",
            "DOCKER-USER -i eth1",
            id="forward drops",
        ),
        pytest.param(
            clash_checks.listener_port,
            with_readings(listeners=(Listener("0.0.0.0", 7895, 12, "squid"),)),
            Status.FAIL,
            "squid (process 12)",
            "inbound.port",
            id="port taken",
        ),
        pytest.param(
            clash_checks.leftovers,
            replace(HEALTHY, leftovers=("4 ip rules", "2 routes")),
            Status.WARN,
            "4 ip rules; 2 routes",
            "gateway down",
            id="leftovers",
        ),
        pytest.param(
            clash_checks.leftovers,
            replace(HEALTHY, leftovers=None),
            Status.WARN,
            "not to be seen",
            "root",
            id="leftovers unknown",
        ),
        pytest.param(
            config_checks.configuration,
            replace(
                HEALTHY,
                config_error=ConfigError(
                    (
                        Problem("g.yaml", 3, 1, "lna", "unknown key", cure="did you mean `lan`?"),
                        Problem("g.yaml", 4, 1, "x", "unknown key"),
                    )
                ),
            ),
            Status.FAIL,
            "g.yaml:3:1: lna: unknown key (and 1 more)",
            "gateway check",
            id="bad configuration",
        ),
        pytest.param(
            config_checks.configuration,
            replace(
                HEALTHY,
                config_error=ConfigError(
                    (Problem("g.yaml", 3, 1, "lna", "unknown key", cure="did you mean `lan`?"),)
                ),
            ),
            Status.FAIL,
            "g.yaml:3:1: lna: unknown key",
            "did you mean `lan`?",
            id="one problem, with its own cure",
        ),
        pytest.param(
            config_checks.configuration,
            replace(HEALTHY, config_error=GatewayError("no such file", "gateway init makes one")),
            Status.FAIL,
            "no such file",
            "gateway init",
            id="no configuration",
        ),
        pytest.param(
            config_checks.lan_interfaces,
            with_config(lan={"interfaces": ["eth7"]}),
            Status.FAIL,
            "does not exist",
            "eth0, eth1",
            id="unknown LAN interface",
        ),
        pytest.param(
            config_checks.lan_interfaces,
            with_facts(interfaces=(Interface("eth1", 3, up=False),)),
            Status.WARN,
            "is down",
            "ip link set eth1 up",
            id="LAN interface down",
        ),
        pytest.param(
            config_checks.lan_interfaces,
            with_facts(interfaces=(Interface("eth1", 3, up=True),)),
            Status.WARN,
            "no address",
            "ip addr add",
            id="LAN interface without address",
        ),
        pytest.param(
            config_checks.default_route,
            with_facts(default_routes=()),
            Status.WARN,
            "none",
            "ip route add default",
            id="no default route",
        ),
        pytest.param(
            config_checks.backend,
            with_facts(features={}),
            Status.FAIL,
            "auto",
            "",
            id="no firewall at all",
        ),
        pytest.param(
            config_checks.loop_guard,
            replace(
                HEALTHY,
                paths=(Finding(Egress("home", "1.2.3.4"), Outcome.LOOP, "local", "loops", "cure"),),
            ),
            Status.FAIL,
            "loops",
            "cure",
            id="loop",
        ),
        pytest.param(
            config_checks.loop_guard,
            replace(
                HEALTHY,
                paths=(
                    Finding(Egress("home", "1.2.3.4"), Outcome.NO_ROUTE, "-", "no route", "wait"),
                ),
            ),
            Status.WARN,
            "no route",
            "wait",
            id="no route is no loop",
        ),
        pytest.param(
            config_checks.capture,
            replace(
                with_config(
                    inbound=ALL_TUN, tun={"capture": "fake-ip", "fake_ip": "192.168.0.0/16"}
                ),
                paths=(),
            ),
            Status.FAIL,
            "overlaps 192.168.1.0/24 of eth1",
            "nobody uses",
            id="fake addresses that somebody has",
        ),
        pytest.param(
            config_checks.capture,
            with_config(inbound=ALL_TUN, tun={"capture": "fake-ip", "fake_ip": "203.0.113.4/30"}),
            Status.FAIL,
            "eth0",
            "nobody uses",
            id="fake addresses of an uplink",
        ),
        pytest.param(
            config_checks.lookups,
            replace(HEALTHY, lookups=(LOOKUP,)),
            Status.FAIL,
            "proxy.example is looked up at 192.0.2.53",
            "port: 53, to: direct",
            id="a name that its own server is to find",
        ),
        pytest.param(
            config_checks.lookups,
            replace(HEALTHY, lookups=(replace(LOOKUP, asker="10.0.1.53", certain=False),)),
            Status.WARN,
            "proxy.example is looked up at 10.0.1.53",
            "source: 10.0.1.53",
            id="a name server in the LAN that asks the same way",
        ),
        pytest.param(
            config_checks.loop_guard,
            replace(HEALTHY, path_error=CapabilityError("no netlink", "run it as root")),
            Status.FAIL,
            "no netlink",
            "root",
            id="guard cannot look",
        ),
    ],
)
def test_complaint(check: Check1, seen: Examined, status: Status, evidence: str, cure: str) -> None:
    found = only(check(seen), status)
    assert evidence in found.evidence
    assert cure in found.cure


@pytest.mark.parametrize(
    ("check", "seen", "evidence"),
    [
        pytest.param(
            machine_checks.valid_mark,
            with_sysctl(net__ipv4__conf__all__src_valid_mark="1"),
            "ip rule keeps",
            id="src_valid_mark is coped with",
        ),
        pytest.param(
            machine_checks.bridges,
            with_sysctl(**{"net__bridge__bridge-nf-call-iptables": "1"}),
            "no LAN interface is a bridge",
            id="Docker without a LAN bridge",
        ),
        pytest.param(
            clash_checks.input_firewall,
            with_readings(drops=(ForeignDrop("nft inet fw input", "input"),)),
            "host_firewall: allow",
            id="input drops and we add a rule",
        ),
        pytest.param(
            clash_checks.listener_port,
            replace(
                with_readings(listeners=(Listener("127.0.0.1", 7895, 77, "python3"),)),
                gateway_process=77,
            ),
            "running gateway",
            id="port held by the gateway",
        ),
        pytest.param(
            clash_checks.listener_port,
            replace(
                with_readings(listeners=(Listener("127.0.0.1", 7895, 78, "python3", 77),)),
                gateway_process=77,
            ),
            "running gateway",
            id="port held by a worker of the gateway",
        ),
        pytest.param(
            clash_checks.leftovers,
            replace(HEALTHY, leftovers=("4 ip rules",), gateway_process=77),
            "process 77",
            id="state of a living gateway",
        ),
    ],
)
def test_no_complaint(check: Check1, seen: Examined, evidence: str) -> None:
    (found,) = check(seen)
    assert found.status is Status.OK
    assert evidence in found.evidence


def test_one_way_without_a_route_is_no_fault_where_there_is_another() -> None:
    paths = (
        Finding(Egress("direct", "192.0.2.1"), Outcome.CLEAR, "via 203.0.113.1"),
        Finding(Egress("direct", "2001:db8::1"), Outcome.NO_ROUTE, "-", "no route", "wait"),
    )
    found = list(config_checks.loop_guard(replace(HEALTHY, paths=paths)))
    assert [check.status for check in found] == [Status.OK, Status.OK]


def test_forwarding_off_is_only_bad_where_we_do_not_turn_it_on() -> None:
    off = with_sysctl(net__ipv4__ip_forward="0")
    assert all(check.status is Status.OK for check in machine_checks.forwarding(off))
    unmanaged = replace(
        with_config(lan={"interfaces": ["eth1"], "forwarding": False}), facts=off.facts
    )
    found = list(machine_checks.forwarding(unmanaged))
    assert [check.status for check in found] == [Status.WARN, Status.WARN]
    assert found[0].cure == "sysctl -w net.ipv4.ip_forward=1"


def test_what_the_tun_takes_is_shown() -> None:
    seen = with_config(inbound=ALL_TUN, tun={"capture": "default-route"})
    (check,) = config_checks.capture(seen)
    assert check.status is Status.OK
    assert check.evidence == "0.0.0.0/0, ::/0 into gateway0, by suppress; then unreachable"
    assert list(config_checks.capture(HEALTHY)) == []
