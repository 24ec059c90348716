"""``gateway demo``: what it shows is true, and it leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest
from traffic import labs_of

from gateway.lab import demo
from gateway.lab.gateway_process import ENVIRONMENT, gateway_command
from gateway.lab.lab import Lab
from gateway.lab.process import wait_until
from gateway.lab.topology import Topology

TIMEOUT_S = 240
#: Client, host, rule, outbound and what the server saw, by address family.
ROWS = (
    ("kid", "web", "rules[1] subnet=kids", "home", "home"),
    ("kid", "blocked", "rules[0] destination=blocked", "reject (kernel)", None),
    ("desk", "web", "rules[3]", "work", "work"),
    ("desk", "mirror", "rules[2] subnet=office", "direct (kernel)", "desk"),
)


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        gateway_command("demo", *arguments),
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*arguments: str) -> str:
    process = start(*arguments)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    assert not labs_of(process.pid)
    return output


def seen(topology: Topology, who: str | None, family: int) -> str:
    if who is None:
        return "nothing"
    pair = (
        topology.upstreams[who].addresses
        if who in topology.upstreams
        else topology.machines[who].links[0].pair
    )
    return pair.of(family)


def test_demo_shows_every_decision_both_ways_and_proves_that_nothing_is_left() -> None:
    output = run()
    topology = Topology.load()
    first, second = output.split("REDIRECT with ")
    assert "TPROXY with " in first
    for part in (first, second):
        lines = [re.split(r"\s{2,}", line.strip()) for line in part.splitlines()]
        for client, host, rule, outbound, who in ROWS:
            for family in (4, 6):
                pair = topology.targets[host]
                address = pair.ipv4 if family == 4 else f"[{pair.ipv6}]"
                row = [client, f"{host} {address}:80", rule, outbound, seen(topology, who, family)]
                assert row in [line[: len(row)] for line in lines], part
        assert "no loop: 4 flows, 4 connections at the SOCKS servers" in part
        assert "the router is as before" in part
    assert "this machine is as before" in second


@pytest.fixture
def _kept_is_removed() -> Iterator[None]:
    yield
    Lab.remove_kept()


@pytest.mark.usefixtures("_kept_is_removed")
def test_keep_leaves_a_working_lan_and_remove_ends_it() -> None:
    output = run("--keep")
    assert len(labs_of("keep")) == 4
    shown = [line.strip() for line in output.splitlines() if "curl http" in line]
    for command in shown:
        peer = subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout
        assert Topology.load().upstreams["home"].addresses.ipv4 in peer
    assert len(shown) == 1
    assert "gwlab-keep-router" in run("--remove")
    assert not labs_of("keep")
    assert "nothing to remove" in run("--remove")


def test_interrupted_it_removes_the_lab_and_says_so_by_its_status() -> None:
    process = start()
    wait_until(lambda: len(labs_of(process.pid)) == 4, "the demo's lab", 60)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert not labs_of(process.pid)


def test_a_row_that_is_not_as_its_rule_says_is_an_error(lab: Lab) -> None:
    """The demo can fail: traffic that nobody diverts is seen under the client's own address."""
    lab.router.sysctl("net.ipv4.ip_forward", "1")
    target = lab.topology.targets["web"]
    done = demo.fetch(lab.client("kid"), target, 4, 1000, directory=lab.directory)
    account = demo.Account("rules[1] subnet=kids -> home", "home", "listener")
    row = demo.Row("kid", "web", done, account)
    assert done.intact
    assert not demo.as_decided(lab, row)
    direct = demo.Row("kid", "web", done, demo.Account("rules[0] -> direct", "direct", "kernel"))
    assert demo.as_decided(lab, direct)
