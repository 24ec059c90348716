"""Routing loops: each is shown to happen without what prevents it, and then not to, with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from traffic import (
    address,
    attempt,
    command,
    dial,
    peer_seen,
    reset_flow,
    running,
    target,
    targets,
    upstream,
)

from gateway.breaker import WINDOW
from gateway.errors import GatewayError
from gateway.lab import upstreams
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.process import wait_until
from gateway.lab.storm import NAIVE, STORM
from gateway.lab.topology import Upstream
from gateway.marks import TABLE_TPROXY, Marks


def diverting_itself(lab: Lab, workers: int = 1) -> dict[str, Any]:
    """Everything to ``home``, this machine's own traffic as well; one connection a flow."""
    outbounds = {"home": lab.socks("home") | {"handshake": "strict"}}
    config = lab.config({"to": "home"}, outbounds=outbounds)
    config["lan"]["this_machine"] = True
    config["inbound"]["workers"] = workers
    return config


def accepted(gateway: GatewayProcess) -> int:
    """Flows so far; 0 when the gateway is too busy to say."""
    with suppress(GatewayError):
        return gateway.counters().get("flows_accepted", 0)
    return 0


def live(gateway: GatewayProcess) -> list[dict[str, Any]]:
    """Flows that have not closed."""
    return [flow for flow in gateway.flows() if flow["state"] != "closed"]


def test_the_detector_ends_a_loop_by_itself(module_lab: Lab, backend: str, mode: str) -> None:
    """Unmarked but detected: the gateway's own connection is closed, counted, and named."""
    lab, program = module_lab, (*NAIVE, "--detect-loops")
    with running(
        lab, diverting_itself(lab), backend=backend, mode=mode, program=program
    ) as gateway:
        for host in targets(lab, "web"):
            assert reset_flow(gateway, lab.router, host)["close_reason"] == "upstream-reset"
        counters = gateway.counters()
        assert (counters["flows_accepted"], counters["closed_loop"]) == (4, 2)
        details = [f["detail"] for f in gateway.flows() if f["close_reason"] == "loop"]
        assert len(details) == 2
        assert all("diverted" in detail for detail in details)


def test_the_detector_ends_a_loop_through_several_workers(module_lab: Lab, mode: str) -> None:
    """Each knows its own connections only; the loop ends when it comes back to one it knows."""
    lab, program = module_lab, (*NAIVE, "--detect-loops")
    with running(lab, diverting_itself(lab, workers=2), mode=mode, program=program) as gateway:
        reset_flow(gateway, lab.router, target(lab, 4))
        counters = gateway.counters()
        assert counters["closed_loop"] >= 1
        assert counters["flows_accepted"] <= STORM


# --- the `device` strategy --------------------------------------------------------------------

LOOPBACK_PORT = 1081


@pytest.fixture
def local_socks(module_lab: Lab) -> Iterator[None]:
    """A SOCKS server on the gateway's own machine."""
    command = ["microsocks", "-i", "127.0.0.1", "-p", str(LOOPBACK_PORT)]
    server = module_lab.router.start_listening("microsocks", command, ("127.0.0.1", LOOPBACK_PORT))
    yield
    server.stop()


def test_device_outbounds_are_used_only_where_they_can_work(
    module_lab: Lab, local_socks: None
) -> None:
    """A bound socket reaches neither this machine nor the world by a link without a route."""
    lab, desk = module_lab, module_lab.client("desk")
    dial(lab.router, "127.0.0.1", LOOPBACK_PORT).close()
    with pytest.raises(TimeoutError):
        dial(lab.router, "127.0.0.1", LOOPBACK_PORT, device="wan0", timeout_s=0.5)

    here = {"type": "socks5", "server": "127.0.0.1", "port": LOOPBACK_PORT, "interface": "wan0"}
    ways = {
        "bound": {**lab.socks("home"), "interface": "wan0"},
        "auto": here,
        "forced": {**here, "route": "device"},
        "routeless": {**lab.socks("home"), "interface": "office0"},
    }
    hosts = dict(zip(ways, targets(lab, "web", "mirror"), strict=True))
    rules = [{"destination": host, "to": name} for name, host in hosts.items()]
    config = lab.config(*rules, {"to": "direct"}, outbounds=ways)
    with running(lab, config) as gateway:
        found = health(gateway)
        assert {name: found[name]["ok"] for name in ways} == {
            "bound": True,
            "auto": True,
            "forced": False,
            "routeless": False,
        }
        assert "127.0.0.1 is this machine's own" in found["forced"]["reason"]
        assert "by office0" in found["routeless"]["reason"]
        assert peer_seen(desk, hosts["bound"]) in upstream(lab, "home")
        assert peer_seen(desk, hosts["auto"]) == address(lab.router, 6)
        for name in ("forced", "routeless"):
            flow = reset_flow(gateway, desk, hosts[name])
            assert flow["close_reason"] == "upstream-unreachable"
            assert flow["detail"] == found[name]["reason"]


def health(gateway: GatewayProcess) -> dict[str, Any]:
    """What the loop guard says of each outbound."""
    return {o["name"]: o for o in gateway.control.get("/health")["outbounds"]}


# --- the guard ---------------------------------------------------------------------------------


def leading_home(lab: Lab, verb: str) -> None:
    """A foreign rule that sends our bypass mark where diverted packets go."""
    rule = ["fwmark", str(Marks().bypass), "lookup", str(TABLE_TPROXY), "pref", "100"]
    for family in ("-4", "-6"):
        lab.router.run(["ip", family, "rule", verb, *rule])


def test_a_rule_that_makes_a_loop_refuses_the_start(lab: Lab) -> None:
    """`check` and `run` say why, and nothing is left."""
    leading_home(lab, "add")
    before = lab.router.snapshot()
    gateway = lab.start_gateway(lab.config({"to": "home"}), wait=False)
    assert gateway.process.wait() == 1
    assert "would hand these packets to our own listener" in "\n".join(gateway.log)
    lab.router.assert_unchanged(before)
    done = command(lab, "check", "--config", str(gateway.config_path), check=False)
    assert done.returncode == 1
    assert "would hand these packets to our own listener" in done.stdout + done.stderr


def test_a_rule_that_makes_a_loop_at_run_time_stops_the_outbound(lab: Lab) -> None:
    """Its flows are refused and the log says so, until the rule goes again."""
    desk, host = lab.client("desk"), target(lab, 4)
    with running(lab, lab.config({"to": "home"})) as gateway:
        assert peer_seen(desk, host) in upstream(lab, "home")
        leading_home(lab, "add")
        wait_until(lambda: not health(gateway)["home"]["ok"], "the guard to see the rule")
        assert any("outbound cannot be used" in line for line in gateway.log)
        assert "listener" in reset_flow(gateway, desk, host)["detail"]
        leading_home(lab, "del")
        wait_until(lambda: health(gateway)["home"]["ok"], "the guard to see that it went")
        assert peer_seen(desk, host) in upstream(lab, "home")


# --- an upstream inside the LAN ------------------------------------------------------------------


def test_an_upstream_in_the_lan_is_not_sent_to_itself(lab: Lab, backend: str) -> None:
    """Known by its address, it is let through; by one that nobody wrote down, it loops.

    The breaker ends that loop by itself, and names the rule that is missing.
    """
    desk, kid = lab.client("desk"), lab.client("kid")
    server = Upstream("desk", desk.spec.links[0].pair, 1080)
    upstreams.microsocks(desk, server, lab.directory)
    outbounds = {"desk": {"type": "socks5", "server": server.addresses.ipv4}}
    config = lab.config({"to": "desk"}, outbounds=outbounds)
    config["inbound"]["workers"] = 1
    with running(lab, config, backend=backend) as gateway:
        assert peer_seen(kid, target(lab, 4)) == server.addresses.ipv4
        assert accepted(gateway) == 1
        # Over IPv6 the server goes on from an address that the configuration does not have.
        _, end = attempt(kid, target(lab, 6), 80)
        assert end == b"" or isinstance(end, ConnectionResetError)
        wait_until(lambda: not live(gateway), "the loop to unwind")
        counters = gateway.counters()
        assert counters["closed_loop"] == 1
        assert WINDOW <= counters["flows_accepted"] <= 2 * WINDOW
        (broken,) = (flow for flow in gateway.flows() if flow["close_reason"] == "loop")
        assert f"{{source: {server.addresses.ipv6}, to: direct}}" in broken["detail"]
    exempt = {"source": server.addresses.ipv6, "to": "direct"}
    config = lab.config(exempt, {"to": "desk"}, outbounds=outbounds)
    with running(lab, config, backend=backend) as gateway:
        assert peer_seen(kid, target(lab, 6)) == server.addresses.ipv6
        assert accepted(gateway) == 1
