"""A reload swaps the policy under living flows: none is dropped, and new ones obey it."""

from __future__ import annotations

import hashlib
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Event
from typing import Any

import pytest
from traffic import (
    FAMILIES,
    address,
    dial,
    listen,
    peer_seen,
    read,
    running,
    target,
    upstream,
)

from gateway.errors import GatewayError
from gateway.lab import http_server, serve
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.process import wait_until
from gateway.marks import DEFAULT_TCP_PORT

OTHER_PORT = 7896
#: python-iptables makes a reload slow.
RELOADS = {"nftables": 20, "iptables": 6}
SIZE = 50_000_000
OTHER = {"tproxy": "redirect", "redirect": "tproxy"}


def config(lab: Lab, to: str, **inbound: Any) -> dict[str, Any]:
    """TCP, and nothing else, to one outbound, over one backend and mode."""
    return lab.config({"to": to}) | {"inbound": {"udp": "off"} | inbound}


def test_flows_outlive_a_reload_and_new_ones_obey_it(
    module_lab: Lab, backend: str, mode: str, workers: int
) -> None:
    """By command and by SIGHUP: a transfer and idle flows keep their outbound, new ones change."""
    lab, desk = module_lab, module_lab.client("desk")
    inbound = {"backend": backend, "tcp": mode, "workers": workers}
    with (
        running(lab, config(lab, "home", **inbound)) as gateway,
        dial(desk, target(lab, 4), serve.HTTP_PORT) as download,
        dialled(lab) as idle,
    ):
        download.sendall(f"GET /bytes/{SIZE} HTTP/1.1\r\nHost: web\r\n\r\n".encode())
        received = read(download, SIZE // 2)
        changes = gateway.reload(config(lab, "work", **inbound))["changes"]
        assert any("rules changed" in change for change in changes)
        assert_new_flows_by(lab, "work")
        gateway.configure(config(lab, "home", **inbound))
        gateway.process.signal(signal.SIGHUP)
        wait_until(lambda: any(" reloaded " in line for line in gateway.log), "the reload")
        assert_new_flows_by(lab, "home")
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        body += read(download, SIZE - len(body))
        assert hashlib.sha256(body).hexdigest() == http_server.digest(SIZE)
        echoes(idle)
        wait_live_by(gateway, "home", "home", "home")


def test_flows_outlive_their_listener(
    module_lab: Lab, backend: str, mode: str, workers: int
) -> None:
    """After `inbound.port` changed, old flows go on and new ones pass by the other port."""
    lab = module_lab
    inbound = {"backend": backend, "tcp": mode, "workers": workers}
    with running(lab, config(lab, "home", **inbound)) as gateway, dialled(lab) as old:
        gateway.reload(config(lab, "work", **inbound, port=OTHER_PORT))
        assert_new_flows_by(lab, "work")
        wait_until(lambda: not lab.router.listens("", DEFAULT_TCP_PORT), "the old port to close")
        echoes(old)
        wait_live_by(gateway, "home", "home")


def test_flows_outlive_a_change_of_the_firewall(module_lab: Lab, mode: str) -> None:
    """`inbound.backend` may change under them; the old one's rules are gone."""
    lab = module_lab
    with (
        running(lab, config(lab, "home", backend="nftables", tcp=mode)) as gateway,
        dialled(lab) as old,
    ):
        gateway.reload(config(lab, "work", backend="iptables", tcp=mode))
        assert "table inet gateway" not in lab.router.run(["nft", "list", "ruleset"]).stdout
        assert_new_flows_by(lab, "work")
        echoes(old)


def test_a_flow_keeps_the_way_it_was_given(
    module_lab: Lab, backend: str, mode: str, workers: int
) -> None:
    """One that the kernel routes is not taken over, nor is a relayed one let go."""
    lab, desk = module_lab, module_lab.client("desk")
    inbound = {"backend": backend, "tcp": mode, "workers": workers}
    with running(lab, config(lab, "direct", **inbound)) as gateway, dialled(lab) as routed:
        gateway.reload(config(lab, "home", **inbound))
        assert_new_flows_by(lab, "home")
        echoes(routed)
        assert gateway.counters()["flows_accepted"] == len(FAMILIES)
        with dialled(lab) as relayed:
            gateway.reload(config(lab, "direct", **inbound))
            for family in FAMILIES:
                assert peer_seen(desk, target(lab, family)) == address(desk, family)
            echoes(relayed)
            echoes(routed)


@contextmanager
def dialled(lab: Lab) -> Iterator[list[socket.socket]]:
    """A flow of each family, with bytes relayed already, to the echo server."""
    with ExitStack() as stack:
        flows = [
            stack.enter_context(dial(lab.client("desk"), target(lab, family), serve.ECHO_PORT))
            for family in FAMILIES
        ]
        echoes(flows)
        yield flows


def echoes(flows: list[socket.socket]) -> None:
    """Each flow still carries bytes both ways."""
    for flow in flows:
        flow.sendall(b"awake")
        assert read(flow, 5) == b"awake"


def wait_live_by(gateway: GatewayProcess, *outbounds: str) -> None:
    """Until no other flows live than as many by these; what curl has asked for ends after it."""

    def outlived() -> bool:
        return [flow["outbound"] for flow in gateway.flows(0)] == [*outbounds]

    wait_until(outlived, f"only flows by {outbounds} to live")


def assert_new_flows_by(lab: Lab, outbound: str) -> None:
    """New flows of both families take that SOCKS server."""
    for family in FAMILIES:
        assert peer_seen(lab.client("desk"), target(lab, family)) in upstream(lab, outbound)


def test_a_refused_reload_changes_nothing(
    module_lab: Lab, backend: str, mode: str, workers: int
) -> None:
    """The answer names the place in the file; the old configuration stays in force."""
    lab, desk, host = module_lab, module_lab.client("desk"), target(module_lab, 4)
    inbound = {"backend": backend, "tcp": mode, "workers": workers}
    good = config(lab, "home", **inbound)
    with running(lab, good) as gateway, listen(lab.router, "::1", OTHER_PORT):
        before = lab.router.snapshot()
        for bad, words in (
            (good | {"rules": [{"to": "hom"}]}, ("rules[0].to", ":", "did you mean")),
            (good | {"inbound": {**good["inbound"], "port": OTHER_PORT}}, ("the port is taken",)),
            (good | {"marks": {"base": 0x10}}, ("marks.base", "restart")),
            (
                good | {"inbound": {**good["inbound"], "tcp": OTHER[mode]}},
                ("inbound.tcp", "restart"),
            ),
        ):
            with pytest.raises(GatewayError) as refusal:
                gateway.reload(bad)
            said = f"{refusal.value} {refusal.value.hint}"
            assert all(word in said for word in words), said
        gateway.process.signal(signal.SIGHUP)
        wait_until(lambda: any("reload refused" in line for line in gateway.log), "the refusal")
        lab.router.assert_unchanged(before)
        assert peer_seen(desk, host) in upstream(lab, "home")


def test_no_connection_is_lost_under_reloads(
    module_lab: Lab, backend: str, mode: str, workers: int
) -> None:
    """Every flow that begins while policies are swapped again and again is carried."""
    lab, desk = module_lab, module_lab.client("desk")
    inbound = {"backend": backend, "tcp": mode, "workers": workers}
    over = Event()
    rounds = 0

    def connect_on_and_on() -> None:
        nonlocal rounds
        while not over.is_set():
            for family in FAMILIES:
                with dial(desk, target(lab, family), serve.ECHO_PORT) as client:
                    echoes([client])
            rounds += 1

    with running(lab, config(lab, "home", **inbound)) as gateway, ThreadPoolExecutor(1) as pool:
        connecting = pool.submit(connect_on_and_on)
        reloads = 0
        try:
            while not connecting.done() and min(reloads, rounds) < RELOADS[backend]:
                gateway.reload(config(lab, ("work", "home")[reloads % 2], **inbound))
                reloads += 1
        finally:
            over.set()
        connecting.result()
        assert gateway.counters()["flows_accepted"] >= 2 * rounds
        wait_until(lambda: not gateway.flows(0), "the last flow to close")
        assert set(gateway.counters()) - {"bytes_up", "bytes_down"} == {
            "flows_accepted",
            "closed_done",
        }
