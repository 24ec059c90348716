"""Groups at work: real SOCKS servers that die, come back, refuse or are silent, under traffic."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from datagrams import ECHO, Relay, Served, answering, ask, echo, refused, talking
from traffic import (
    FAMILIES,
    Family,
    address,
    command,
    curl,
    dial,
    flow_of,
    peer_seen,
    read,
    read_all,
    reset_flow,
    running,
    target,
    targets,
    upstream,
    url,
    wait_counter,
    worker_pids,
)

from gateway.lab import http_server
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.process import Process, wait_until
from gateway.lab.upstreams import STARTERS

#: Inside the WAN's network, but nobody has it.
NOBODY = "203.0.113.99"
SIZE = 20_000_000
QUIC = 443
RELAY_PORT = 1081


def config(lab: Lab, *rules: dict[str, Any], **outbounds: dict[str, Any]) -> dict[str, Any]:
    ways = {name: lab.socks(name) for name in ("home", "work", "spare")}
    return lab.config(*rules, outbounds={**ways, **outbounds})


def group(lab: Lab, kind: str, *members: str, **more: Any) -> dict[str, Any]:
    """A group that is probed each second, also while no flow asks for it.

    Who is not there refuses at once: a probe may take as long as a busy machine needs.
    """
    made: dict[str, Any] = {"type": kind, "members": list(members), **more}
    if kind != "select":
        whoami = url(target(lab, 4), "/whoami")
        made["probe"] = {"url": whoami, "every": 1, "timeout": 30, "lazy": False}
    return made


def silence(lab: Lab) -> None:
    """Have the router believe that somebody is there whom it can send to."""
    neighbour = ["lladdr", "02:00:00:00:00:99", "dev", "wan0", "nud", "permanent"]
    lab.router.run(["ip", "neighbour", "replace", NOBODY, *neighbour])


def start(lab: Lab, program: str) -> Process:
    directory = lab.directory / program
    directory.mkdir(exist_ok=True)
    return STARTERS[program](lab.internet, lab.topology.upstreams["spare"], directory)


def groups(gateway: GatewayProcess) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in gateway.control.get("/groups")["groups"]}


def wait_takes(gateway: GatewayProcess, name: str, *members: str) -> None:
    wait_until(lambda: groups(gateway)[name]["takes"] == [*members], f"{name} to take {members}")
    gateway.counters()  # workers are told a moment later, and answer one question after the other


def wait_logged(gateway: GatewayProcess, words: str) -> None:
    wait_until(lambda: any(words in line for line in gateway.log), f"{words!r} in the log")


def way(lab: Lab, family: Family = 4, client: str = "desk") -> str:
    """By which server a new flow goes."""
    seen = peer_seen(lab.client(client), target(lab, family))
    return next((name for name in ("home", "work", "spare") if seen in upstream(lab, name)), seen)


@pytest.mark.parametrize(
    ("program", "families", "workers"),
    [("microsocks", (4,), 1), ("danted", FAMILIES, 2), ("sing-box", FAMILIES, 2)],
)
def test_flows_move_when_the_server_dies_and_come_back_with_it(
    module_lab: Lab, program: str, families: tuple[Family, ...], workers: int
) -> None:
    """No flow meets the death: the first one after it is carried by the next member."""
    lab = module_lab
    server = start(lab, program)
    wanted = config(
        lab,
        {"to": "exit"},
        auto=group(lab, "fallback", "spare", "home"),
        exit=group(lab, "select", "auto"),
    )
    try:
        with running(lab, wanted, workers=workers) as gateway:
            wait_takes(gateway, "auto", "spare")
            assert {way(lab, family) for family in families} == {"spare"}
            server.kill()
            assert {way(lab, family) for family in families * 4} == {"home"}
            wait_takes(gateway, "auto", "home")

            def spare() -> dict[str, Any]:
                member: dict[str, Any] = groups(gateway)["auto"]["members"][0]
                return member

            assert (spare()["name"], spare()["state"]) == ("spare", "down")
            # The death itself may have met a probe, which has seen something else.
            wait_until(lambda: "refused" in spare()["failure"], "a probe to be refused")
            assert {flow["member"] for flow in gateway.flows()} == {"auto>spare", "auto>home"}
            wait_logged(gateway, "outbound=exit>auto>home")
            wait_logged(gateway, "a group takes another member")
            server = start(lab, program)
            wait_takes(gateway, "auto", "spare")
            assert {way(lab, family) for family in families} == {"spare"}
            counters = gateway.counters()
            assert counters["group_switches"] >= 2
            assert counters["probes_failed"] >= 1
    finally:
        server.kill()


def test_a_choice_under_traffic(module_lab: Lab) -> None:
    """New flows go by the chosen member, old ones keep theirs; after a restart it holds."""
    lab, desk = module_lab, module_lab.client("desk")
    members = ("home", "work", "direct", "reject")
    wanted = config(lab, {"to": "exit"}, exit=group(lab, "select", *members))

    def select(member: str) -> None:
        chosen = gateway.control.request("POST", f"/select?group=exit&member={member}")
        assert chosen["takes"] == [member]

    with running(lab, wanted, workers=2) as gateway:
        assert way(lab) == way(lab, 6) == "home"
        with dial(desk, target(lab, 4), 80) as old:
            old.sendall(
                f"GET /bytes/{SIZE} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
            )
            head = read(old, 4096)
            select("work")
            assert way(lab) == way(lab, 6) == "work"
            select("direct")
            assert way(lab, 6) == address(lab.router, 6, "wan")
            select("reject")
            assert reset_flow(gateway, desk, target(lab, 4))["detail"] == "reject: rejected"
            body = (head + read_all(old)).partition(b"\r\n\r\n")[2]
            assert hashlib.sha256(body).hexdigest() == http_server.digest(SIZE)
        where = ("--run-dir", str(gateway.run_dir))
        refused = command(lab, "select", "exit", "hom", *where, check=False)
        assert refused.returncode == 1
        assert "did you mean home?" in refused.stderr
        assert command(lab, "select", "exit", "work", *where).stdout == "exit takes work\n"
        for pid in worker_pids(gateway):
            os.kill(pid, signal.SIGKILL)
        wait_counter(gateway, "workers_lost", 2)
        wait_until(lambda: len(worker_pids(gateway)) == 2, "new workers")
        wait_until(lambda: curl(desk, url(target(lab, 4), "/whoami")).returncode == 0, "service")
        assert way(lab) == "work", "they were told of the choice"
        gateway.stop()
        gateway.restart()
        assert way(lab) == "work"
        assert groups(gateway)["exit"]["reason"] == "chosen by hand"


def test_a_choice_that_interrupts_ends_the_flows_of_the_old_member(module_lab: Lab) -> None:
    lab, desk = module_lab, module_lab.client("desk")
    wanted = config(lab, {"to": "exit"}, exit=group(lab, "select", "home", "work", interrupt=True))
    with running(lab, wanted, workers=1) as gateway, dial(desk, target(lab, 4), 80) as old:
        old.sendall(b"GET /slow?count=1000 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read(old, 15) == b"HTTP/1.1 200 OK"
        gateway.control.request("POST", "/select?group=exit&member=work")
        with pytest.raises(ConnectionResetError):
            read_all(old)
        flow = flow_of(gateway, old.getsockname()[1])
        assert (flow["close_reason"], flow["member"]) == ("switched", "home")
        assert way(lab) == "work"


def test_clients_are_spread_and_stay(module_lab: Lab) -> None:
    """One member for a client, whatever it asks; the member lost, another takes over.

    The kids take whom the probes find the fastest of those who answer.
    """
    lab = module_lab
    wanted = config(
        lab,
        {"subnet": "kids", "to": "fast"},
        {"to": "all"},
        all=group(lab, "load-balance", "home", "work"),
        fast=group(lab, "url-test", "spare", "home", "work", tolerance=0),
    )
    with running(lab, wanted, workers=2) as gateway:

        def measured() -> bool:
            """Whether ``fast`` has looked at all its members, of which one is not there."""
            return [each["state"] for each in groups(gateway)["fast"]["members"]] == [
                "down",
                "up",
                "up",
            ]

        wait_until(measured, "all to be measured")
        assert {way(lab, family, "kid") for family in FAMILIES} <= {"home", "work"}
        wait_takes(gateway, "all", "home", "work")
        mine = {way(lab, 4) for _ in range(6)}
        assert len(mine) == 1
        (taken,) = mine
        other = {"home": "work", "work": "home"}[taken]
        broken = {**wanted, "outbounds": dict(wanted["outbounds"])}
        broken["outbounds"][taken] = {**lab.socks(taken), "port": 9}
        gateway.reload(broken)
        assert {way(lab, 4) for _ in range(6)} == {other}
        wait_takes(gateway, "all", other)


@pytest.fixture(scope="module")
def servers(module_lab: Lab) -> Iterator[Served]:
    with answering(module_lab, {ECHO: echo}) as servers:
        yield servers


def test_datagrams_take_the_first_member_that_carries_them(
    module_lab: Lab, servers: Served
) -> None:
    """``home`` carries TCP alone; and where none does, QUIC is refused so that TCP is tried."""
    lab, desk = module_lab, module_lab.client("desk")
    server = start(lab, "sing-box")
    wanted = config(
        lab,
        {"port": ECHO, "to": "able"},
        {"port": 80, "to": "able"},
        {"to": "unable"},
        able=group(lab, "fallback", "home", "spare"),
        unable=group(lab, "fallback", "home", "work"),
    )
    wanted["inbound"] = {"udp": "tproxy", "workers": 2}
    try:
        with running(lab, wanted) as gateway:
            for family in FAMILIES:
                with talking(desk, target(lab, family)) as sock:
                    assert ask(sock) == b"hello"
            flows = [flow for flow in gateway.flows() if flow["protocol"] == "udp"]
            assert {flow["member"] for flow in flows} == {"spare"}
            assert way(lab) == "home"
            wait_until(
                lambda: any("carries no UDP" in rule["rule"] for rule in gateway.placements()),
                "the group to be known to carry none",
            )
            with talking(desk, target(lab, 4), QUIC) as sock:
                refused(sock)
    finally:
        server.kill()


def test_datagrams_move_when_the_server_dies(module_lab: Lab, servers: Served) -> None:
    """Nobody notices: what the client had begun goes on by another, without a refusal."""
    lab, desk = module_lab, module_lab.client("desk")
    server = start(lab, "sing-box")
    silence(lab)
    second = Relay(lab.internet, lab.topology.upstreams["work"].addresses.ipv4, RELAY_PORT)
    wanted = config(
        lab,
        {"destination": target(lab, 6), "to": "gone-first"},
        {"destination": target(lab, 4, "mirror"), "to": "silent-first"},
        {"to": "able"},
        gone={**lab.socks("home"), "port": 9, "udp": True},
        nobody={**lab.socks("home"), "server": NOBODY, "udp": True},
        second={"type": "socks5", "server": second.host, "port": RELAY_PORT, "pool": "off"},
        **{
            name: {"type": "fallback", "members": [member, "second"], "probe": {"every": 3600}}
            for name, member in (
                ("able", "spare"),
                ("gone-first", "gone"),
                ("silent-first", "nobody"),
            )
        },
    )
    wanted["inbound"] = {"udp": "tproxy", "workers": 1}

    def members() -> list[str]:
        return [flow["member"] for flow in gateway.flows() if flow["protocol"] == "udp"]

    try:
        with running(lab, wanted) as gateway, talking(desk, target(lab, 4)) as sock:
            assert ask(sock) == b"hello"
            assert members() == ["spare"]
            server.kill()
            wait_until(lambda: members() == ["second"], "the flow to go by the other member")
            assert ask(sock) == b"hello"
            (flow,) = [flow for flow in gateway.flows() if flow["protocol"] == "udp"]
            assert (flow["state"], flow["bytes_down"]) == ("relaying", 10)
            # And what a client says first is kept while a member turns out to be gone, or silent.
            for host in (target(lab, 6), target(lab, 4, "mirror")):
                with talking(desk, host) as first:
                    assert ask(first) == b"hello"
                assert members()[-1] == "second"
            assert gateway.counters()["group_failovers"] == 3
            assert "udp_refused" not in gateway.counters()
    finally:
        second.close()
        server.kill()


# From here on one gateway runs to the end of the module.


@pytest.fixture(scope="module")
def troubled(module_lab: Lab) -> Iterator[GatewayProcess]:
    """A gateway with a rule for each kind of trouble; by port, at no server."""
    lab = module_lab
    silence(lab)
    wrong = {**lab.socks("work"), "password": "not-that"}
    wanted = config(
        lab,
        {"destination": targets(lab, "mirror"), "to": "guarded"},
        {"port": 80, "to": "denied"},
        {"port": 443, "to": "silent"},
        {"port": 8201, "to": "dead"},
        {"port": 8202, "to": "last"},
        {"port": 8203, "to": "denied"},
        {"to": "direct"},
        wrong=wrong,
        gone={**lab.socks("home"), "port": 9},
        nobody={**lab.socks("home"), "server": NOBODY},
        vpn={"type": "direct", "interface": "wg9"},
        guarded={"type": "fallback", "members": ["vpn", "home"]},
        denied={"type": "fallback", "members": ["wrong", "home"]},
        silent={"type": "fallback", "members": ["nobody", "home"]},
        dead={"type": "load-balance", "members": ["gone", "wrong"]},
        last={"type": "fallback", "members": ["gone", "wrong", "direct"]},
    )
    for each in ("guarded", "denied", "silent", "dead", "last"):
        # Nobody answers the probes either: what flows meet decides.
        whoami, timeout = url(target(lab, 4), "/whoami"), 5 if each == "silent" else 30
        wanted["outbounds"][each]["probe"] = {"url": whoami, "every": 3600, "timeout": timeout}
    with running(lab, wanted, workers=2) as gateway:
        yield gateway


def test_a_member_that_lets_nobody_in(module_lab: Lab, troubled: GatewayProcess) -> None:
    assert {way(module_lab, family) for family in FAMILIES} == {"home"}
    wait_takes(troubled, "denied", "home")
    assert "denied" in groups(troubled)["denied"]["reason"]


def test_a_member_whose_interface_is_not_there(module_lab: Lab, troubled: GatewayProcess) -> None:
    for family in FAMILIES:
        seen = peer_seen(module_lab.client("desk"), target(module_lab, family, "mirror"))
        assert seen in upstream(module_lab, "home")


def test_what_a_destination_says_is_not_held_against_the_member(
    module_lab: Lab, troubled: GatewayProcess
) -> None:
    flow = reset_flow(troubled, module_lab.client("desk"), target(module_lab, 4), 8203)
    assert flow["close_reason"] == "upstream-refused"
    assert "home: " in flow["detail"]


def test_a_member_that_is_silent(module_lab: Lab, troubled: GatewayProcess) -> None:
    """The client waits a little, and is served; what it has sent is not lost."""
    done = curl(module_lab.client("desk"), f"https://{target(module_lab, 4)}/whoami", "-k")
    assert json.loads(done.stdout)["peer"] in upstream(module_lab, "home")
    wait_takes(troubled, "silent", "home")


def test_where_all_members_fail_the_flow_is_closed_and_says_why_of_each(
    module_lab: Lab, troubled: GatewayProcess, family: Family
) -> None:
    flow = reset_flow(troubled, module_lab.client("desk"), target(module_lab, family), 8201)
    assert flow["close_reason"] in ("upstream-refused", "upstream-denied")
    assert "gone: " in flow["detail"]
    assert "wrong: " in flow["detail"]
    wait_counter(troubled, "group_exhausted")


def test_direct_is_the_last_resort_only_where_it_is_written(
    module_lab: Lab, troubled: GatewayProcess
) -> None:
    """The destination itself refuses, so the flow did get there; it names its member."""
    flow = reset_flow(troubled, module_lab.client("desk"), target(module_lab, 4), 8202)
    assert flow["close_reason"] == "upstream-refused"
    assert "direct: Connection refused" in flow["detail"]


def test_explain_and_plan_name_the_group(module_lab: Lab, troubled: GatewayProcess) -> None:
    lab = module_lab
    assert way(lab) == "home"
    wait_takes(troubled, "denied", "home")
    client, host = address(lab.client("desk"), 4), target(lab, 4)
    run_dir = str(troubled.run_dir)
    told = command(
        lab, "explain", client, f"{host}:80", "--running", "--run-dir", run_dir, "--json"
    )
    explained = json.loads(told.stdout)
    assert explained["takes"] == "denied"
    (chosen,) = explained["groups"]
    assert (chosen["group"], chosen["type"], chosen["member"]) == ("denied", "fallback", "home")
    assert "wrong is down" in chosen["reason"]
    assert explained["ways"][0]["destination"] == lab.topology.upstreams["home"].addresses.ipv4
    told = command(lab, "explain", client, f"{host}:80", "--config", str(troubled.config_path))
    assert "denied (fallback) -> wrong: the first that is well: not measured" in told.stdout
    placed = troubled.placements()[1]
    assert placed["place"] == "both"
    assert "a group (fallback)" in placed["reason"]
