from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import pytest

from gateway.config.schema import Config
from gateway.kernel import routes
from gateway.kernel.applier import Applier
from gateway.kernel.guard import Finding, Outcome, prove
from gateway.kernel.probe import probe_host
from gateway.marks import Marks
from gateway.plan.addresses import EVERYTHING, Family
from gateway.plan.capture import Capture, capture_routes, capture_rules, neighbour_routes
from gateway.plan.egress import Egress
from gateway.plan.model import Backend
from gateway.plan.strategies import egresses

from .namespace import Namespace
from .plans import plan

MARKED = Egress("home", "198.51.100.5", mark=Marks().bypass, port=1080)
SERVERS = ["198.51.100.5", "2001:db8:51::5"]


def ask(ns: Namespace, egress: Egress) -> Finding:
    (finding,) = ns.call(prove, [egress], 7895)
    return finding


@pytest.fixture
def diverting(ns: Namespace, applier: Applier) -> Namespace:
    ns.call(applier.apply, plan(Backend.NFTABLES))
    return ns


@pytest.mark.parametrize("server", SERVERS)
def test_the_mark_keeps_out_of_the_diversion(diverting: Namespace, server: str) -> None:
    marked = replace(MARKED, destination=server)
    finding = ask(diverting, marked)
    assert finding.outcome is Outcome.CLEAR
    assert "dev wan0 table 254" in finding.route

    # The negative control: a socket with the mark of diverted packets would loop.
    finding = ask(diverting, replace(marked, mark=Marks().divert_own))
    assert finding.outcome is Outcome.LOOP
    assert finding.route == "local dev lo table 8801"


@pytest.mark.parametrize("server", SERVERS)
def test_a_rule_of_others_that_sends_the_bypass_mark_in(diverting: Namespace, server: str) -> None:
    six = "-6" if ":" in server else "-4"
    diverting.run("ip", six, "rule", "add", "pref", "100", "lookup", "8801")
    assert ask(diverting, replace(MARKED, destination=server)).outcome is Outcome.LOOP


def test_no_route_is_told_from_a_loop(diverting: Namespace) -> None:
    diverting.run("ip", "route", "del", "default")
    finding = ask(diverting, MARKED)
    assert (finding.outcome, finding.ok) == (Outcome.NO_ROUTE, True)
    assert finding.route == f"no route ({errno.errorcode[errno.ENETUNREACH]})"
    diverting.run("ip", "route", "add", "prohibit", "198.51.100.0/24")
    assert ask(diverting, MARKED).route == "no route (EACCES)"


def test_own_addresses_and_listeners(diverting: Namespace) -> None:
    for own in ("127.0.0.1", "203.0.113.2", "::1", "fd00:20::1"):
        assert ask(diverting, replace(MARKED, destination=own)).outcome is Outcome.CLEAR
        looped = replace(MARKED, destination=own, port=7895)
        assert ask(diverting, looped).outcome is Outcome.LOOP
        by_device = replace(MARKED, destination=own, device="wan0")
        assert ask(diverting, by_device).outcome is Outcome.REFUSED


def test_device(diverting: Namespace) -> None:
    by_wan = Egress("vpn", "198.51.100.5", device="wan0")
    assert ask(diverting, by_wan).route == "via 203.0.113.1 dev wan0 table 254"
    assert ask(diverting, replace(by_wan, destination="203.0.113.9")).outcome is Outcome.CLEAR

    # lan0 has no way there: the kernel would ask for the address itself on that link.
    by_lan = replace(by_wan, device="lan0")
    finding = ask(diverting, by_lan)
    assert finding.outcome is Outcome.REFUSED
    assert "dev lan0 metric" in finding.hint
    six = replace(by_lan, destination="2001:db8:51::5")
    assert ask(diverting, six).outcome is Outcome.NO_ROUTE

    # With a route of its own it has one, even of a worse metric.
    diverting.sh("ip route add default via 192.168.20.254 dev lan0 metric 1000")
    assert ask(diverting, by_lan).route == "via 192.168.20.254 dev lan0 table 254"

    # A device without ARP takes everything as it comes.
    diverting.sh("ip route del default dev lan0; ip link set lan0 arp off")
    assert ask(diverting, by_lan).outcome is Outcome.CLEAR

    gone = ask(diverting, replace(by_wan, device="wg9"))
    assert (gone.outcome, gone.route) == (Outcome.NO_ROUTE, "no route (ENODEV)")


def entries_of(ns: Namespace, config: Config) -> Egress:
    """The only way out of its outbound ``out``."""
    host = ns.call(probe_host, "nftables")
    (way,) = (way for way in egresses(config, host, {}) if way.outbound == "out")
    return way


@pytest.mark.parametrize("route", ["source", "host_route"])
@pytest.mark.parametrize("server", SERVERS)
def test_a_strategy_is_foreseen_then_proved(ns: Namespace, route: str, server: str) -> None:
    """Another program has taken both halves of the default route for its tunnel."""
    ns.sh(
        """
        ip tuntap add mode tun tun9
        ip link set tun9 up
        for half in 0.0.0.0/1 128.0.0.0/1 ::/1 8000::/1; do ip route add $half dev tun9; done
        """
    )
    outbound = {"type": "socks5", "server": server, "route": route, "interface": "wan0"}
    config = Config.model_validate(
        {"lan": {"interfaces": ["lan0"]}, "outbounds": {"out": outbound}, "rules": [{"to": "out"}]}
    )
    assert "dev tun9" in ask(ns, replace(MARKED, destination=server)).route
    way = entries_of(ns, config)
    finding = ask(ns, way)
    assert (finding.outcome, "once the gateway is up" in finding.route) == (Outcome.CLEAR, True)
    ns.call(routes.add, way.entries)
    finding = ask(ns, way)
    table = 8810 if route == "source" else 254
    assert finding.outcome is Outcome.CLEAR
    assert finding.route == f"via {way.via} dev wan0 table {table}"
    # A route that others put before ours is seen.
    six = "-6" if ":" in server else "-4"
    ns.run("ip", six, "rule", "add", "pref", "50", "lookup", "50")
    ns.run("ip", six, "route", "add", "default", "dev", "tun9", "table", "50")
    finding = ask(ns, way)
    assert finding.outcome is Outcome.REFUSED
    assert finding.reason == "the kernel would send these packets by tun9, not by wan0"


@pytest.mark.parametrize("by", ["suppress", "split_default"])
@pytest.mark.parametrize("family", Family)
def test_our_own_tun(ns: Namespace, by: Any, family: Family) -> None:
    """Beside the ladder the mark leads past it; where the main table is taken, it does not."""
    ns.sh("ip tuntap add mode tun tun9; ip link set tun9 up")
    everything = Capture("tun9", (EVERYTHING[family],), by, uids=(4242,))
    ns.call(routes.add, capture_routes(everything, [family]))
    ns.call(routes.add, capture_rules(everything, [family], Marks()))
    server = SERVERS[family is Family.V6]
    marked = replace(MARKED, destination=server)
    # By a table of ours it is a loop, whoever reads there; by the main table it is our own device.
    loop = ask(ns, replace(marked, mark=None))
    assert (loop.outcome, "TUN" in loop.reason) == (
        (Outcome.REFUSED, True) if by == "split_default" else (Outcome.LOOP, False)
    )
    finding = ask(ns, marked)
    if by == "split_default":
        assert finding.outcome is Outcome.REFUSED
        assert "host_route" in finding.hint
        return
    assert finding.route.endswith("dev wan0 table 254")
    ns.run("ip", "-6" if family is Family.V6 else "-4", "route", "del", "default")
    assert ask(ns, marked).route == "no route (ENETUNREACH)"


def test_another_namespace(ns: Namespace) -> None:
    other = Namespace()
    try:
        way = replace(MARKED, strategy="netns", netns=other.name)
        assert ask(ns, way).route == "via 203.0.113.1 dev wan0 table 254"
        other.run("ip", "route", "del", "default")
        assert ask(ns, way).outcome is Outcome.NO_ROUTE
        assert ask(ns, MARKED).outcome is Outcome.CLEAR, "this one is not that one"
    finally:
        other.close()
    finding = ask(ns, way)
    assert finding.reason == f"there is no network namespace {other.name} now"


def test_source(diverting: Namespace) -> None:
    diverting.sh(
        """
        ip address add 203.0.113.3/24 dev wan0
        ip rule add pref 200 from 203.0.113.3 lookup 8801
        """
    )
    assert ask(diverting, replace(MARKED, source="203.0.113.2")).outcome is Outcome.CLEAR
    assert ask(diverting, replace(MARKED, source="203.0.113.3")).outcome is Outcome.LOOP


@pytest.mark.parametrize("by", ["suppress", "split_default"])
def test_what_is_shown_of_a_capture_can_be_typed(ns: Namespace, by: Any) -> None:
    """Each line as ``gateway plan`` shows it leads to what netlink is told."""
    ns.sh("ip tuntap add mode tun tun9; ip link set tun9 up")
    everything = Capture("tun9", tuple(EVERYTHING.values()), by, uids=(4242,))
    entries = (
        *neighbour_routes(everything, Family),
        *capture_routes(everything, Family),
        *capture_rules(everything, Family, Marks()),
    )
    ns.call(routes.add, entries)
    told = ns.call(routes.read)
    ns.call(routes.remove, entries)
    for entry in entries:
        ns.run(*routes.describe(entry, "add").split())
    assert ns.call(routes.read) == told
