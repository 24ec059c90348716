from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from gateway.errors import ApplyError
from gateway.kernel import deadman
from gateway.kernel.applier import Applier
from gateway.lab.process import wait_until
from gateway.plan.model import Backend

from .namespace import Namespace
from .plans import plan

NAMES = ("gw_alive4", "gw_alive6")


def alive(ns: Namespace, backend: Backend) -> bool:
    """Whether the elements of both sets are there."""
    if backend is Backend.NFTABLES:
        sets = [ns.run("nft", "list", "set", "inet", "gateway", name) for name in NAMES]
        return all("elements" in text for text in sets)
    return all("\nadd" in ns.run("ipset", "save", name) for name in NAMES)


def shorten(ns: Namespace, backend: Backend) -> None:
    """Let the elements expire in a second."""
    if backend is Backend.NFTABLES:
        ns.sh(
            """
            for set in 'gw_alive4 { 0.0.0.0/1 timeout 1s, 128.0.0.0/1 timeout 1s }' \
                       'gw_alive6 { ::/1 timeout 1s, 8000::/1 timeout 1s }'; do
                nft "flush set inet gateway ${set%% *}; add element inet gateway $set"
            done
            """
        )
    else:
        ns.sh(
            """
            for address in 0.0.0.0/1 128.0.0.0/1; do
                ipset -exist add gw_alive4 $address timeout 1
            done
            for address in ::/1 8000::/1; do ipset -exist add gw_alive6 $address timeout 1; done
            """
        )


def test_alive_from_the_start_until_nobody_refreshes(
    ns: Namespace, applier: Applier, backend: Backend
) -> None:
    wanted = plan(backend, on_failure="open")
    ns.call(applier.apply, wanted)
    assert alive(ns, backend)

    shorten(ns, backend)
    wait_until(lambda: not alive(ns, backend), "the elements to expire")

    # Dead sets come back, by a refresh and by a start over what is there.
    ns.call(deadman.refresh, wanted)
    assert alive(ns, backend)
    ns.run(
        *(
            ["ipset", "flush", NAMES[0]]
            if backend is Backend.IPTABLES
            else ["nft", "flush", "set", "inet", "gateway", NAMES[0]]
        )
    )
    assert ns.call(applier.apply, wanted).steps == ()
    assert alive(ns, backend)


def test_a_refresh_restarts_the_clock(ns: Namespace, applier: Applier, backend: Backend) -> None:
    wanted = plan(backend, on_failure="open")
    ns.call(applier.apply, wanted)
    shorten(ns, backend)
    ns.call(deadman.refresh, wanted)
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        assert alive(ns, backend)


def test_no_packet_falls_through_a_refresh(ns: Namespace, applier: Applier) -> None:
    wanted = plan(Backend.NFTABLES, on_failure="open")
    ns.call(applier.apply, wanted)
    ns.sh(
        """
        nft 'add chain inet gateway probe { type filter hook output priority 0; }'
        nft 'add rule inet gateway probe udp dport 9 ip saddr @gw_alive4 counter return'
        nft 'add rule inet gateway probe udp dport 9 counter'
        """
    )

    enough = threading.Event()

    def refresh_often() -> None:
        count = 0
        while count < 100 or not enough.is_set():
            deadman.refresh(wanted)
            count += 1

    sent = 0
    # A socket stays in the namespace where it was made.
    with ns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        refreshing = ns.start(refresh_often)
        while not refreshing.done():
            sender.sendto(b"x", ("127.0.0.1", 9))
            sent += 1
            if sent == 1000:
                enough.set()
        refreshing.result()
    listing = json.loads(ns.run("nft", "-j", "list", "chain", "inet", "gateway", "probe"))
    alive_packets, dead_packets = (
        statement["counter"]["packets"]
        for item in listing["nftables"]
        for statement in item.get("rule", {}).get("expr", ())
        if "counter" in statement
    )
    assert (alive_packets, dead_packets) == (sent, 0)


def test_without_dead_man_sets_there_is_nothing_to_do(ns: Namespace, backend: Backend) -> None:
    ns.call(deadman.refresh, plan(backend))


def test_sets_that_are_gone_are_an_error(ns: Namespace, backend: Backend) -> None:
    with pytest.raises(ApplyError):
        ns.call(deadman.refresh, plan(backend, on_failure="open"))
