from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from gateway.kernel.applier import Applier
from gateway.kernel.guard import Egress, Finding, Outcome, prove
from gateway.marks import Marks
from gateway.plan.model import Backend

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


def test_source(diverting: Namespace) -> None:
    diverting.sh(
        """
        ip address add 203.0.113.3/24 dev wan0
        ip rule add pref 200 from 203.0.113.3 lookup 8801
        """
    )
    assert ask(diverting, replace(MARKED, source="203.0.113.2")).outcome is Outcome.CLEAR
    assert ask(diverting, replace(MARKED, source="203.0.113.3")).outcome is Outcome.LOOP
