"""Pings of this machine through its own TUN; and what becomes of those that go round."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from datagrams import talking
from test_icmp import passed, ping, received, rise
from traffic import FAMILIES, attempt, running, target, wait_counter

from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.process import wait_until
from gateway.lab.storm import NAIVE

#: What a host sends with, and so the most that a ping can go round.
HOP_LIMIT = 64
#: As which the gateway is a hop: the address behind the device's own.
HOPS = {4: "172.29.88.2", 6: "fd67:6174:6577:6179::2"}


def config(lab: Lab) -> dict[str, Any]:
    """By this machine's own routing: nothing but the mark keeps its packets out of the TUN."""
    out = {"out": {"type": "direct", "route": "mark"}, "home": lab.socks("home")}
    found = lab.config({"protocol": "icmp", "to": "out"}, {"to": "home"}, outbounds=out)
    found["lan"]["this_machine"] = True
    found["inbound"] |= {"icmp": "tun", "workers": 1}
    return found


def test_this_machines_own_pings(lab: Lab) -> None:
    """Answered, and known as one hop more: it is the gateway itself that they go through."""
    with running(lab, config(lab)) as gateway:
        for family in FAMILIES:
            host = target(lab, family)
            assert received(ping(lab.router, host)) == 1
            assert received(ping(lab.client("desk"), host)) == 1
            told = re.search(r"From (\S+) .*exceeded", ping(lab.router, host, "-t", "1"))
            assert told
            assert told[1] == HOPS[family]
        assert gateway.counters()["icmp_echo_replies"] == 4
        assert "tun_dropped_icmp_loop" not in gateway.counters()


def test_what_is_for_the_device_itself_ends_there(lab: Lab) -> None:
    """Its network has nobody else in it: each packet goes round once at most."""
    found = config(lab) | {"rules": [{"to": "out"}]}
    found["inbound"] |= {"tcp": "tun", "udp": "tun"}
    with running(lab, found) as gateway:
        before = passed(lab)
        for host in HOPS.values():
            assert received(ping(lab.router, host, "-W", "1", count=5)) == 0
            for _ in range(5):
                _, end = attempt(lab.router, host, 53)
                assert isinstance(end, ConnectionError)
                with talking(lab.router, host) as sock:
                    sock.send(b"hello")
        wait_counter(gateway, "udp_closed_loop", 2 * 5)  # the last of them has come back
        read, written = (now - then for now, then in zip(passed(lab), before, strict=True))
        assert 2 * 15 <= read <= 2 * 2 * 15
        assert written <= read
        assert gateway.counters().get("flows_accepted", 0) == 0


def test_what_goes_round_ends(lab: Lab) -> None:
    """Without the mark every request comes back: until its hops are spent, or it is known."""
    for program, bound in ((NAIVE, HOP_LIMIT), ((*NAIVE, "--detect-loops"), 2)):
        ended = f"tun_dropped_icmp_{'loop' if bound == 2 else 'expired'}"
        with running(lab, config(lab), program=program) as gateway:
            for number, family in enumerate(FAMILIES, 1):
                before = gateway.counters()
                text = ping(lab.client("desk"), target(lab, family), "-W", "1")
                assert received(text) == 0
                wait_until(partial(_reached, gateway, ended, number), "its end to be counted")
                assert bound // 2 < rise(gateway, "icmp_echo_requests", before) <= bound


def _reached(gateway: GatewayProcess, name: str, count: int) -> bool:
    return gateway.counters().get(name) == count
