"""TUN mode: its device, what is around it, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from test_tun import DEVICE, OWN, config, download, links
from traffic import (
    FAMILIES,
    Witness,
    address,
    attempt,
    command,
    dial,
    peer_seen,
    read,
    running,
    target,
    targets,
    upstream,
    wait_counter,
    worker_pids,
)

from gateway.errors import GatewayError
from gateway.lab import http_server, serve
from gateway.lab.lab import Lab
from gateway.lab.own_tun import tun_config
from gateway.lab.process import LabError, wait_until

_STRICT = """
table inet strict {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
    }
}
"""


def test_segments_fit_the_device(module_lab: Lab, backend: str) -> None:
    """Both directions, whatever the LAN takes: MTU 1280."""
    lab, desk = module_lab, module_lab.client("desk")
    with running(lab, config(lab) | {"tun": {"mtu": 1280}}, backend=backend):
        for family, most in ((4, 1280 - 40), (6, 1280 - 60)):
            with dial(desk, target(lab, family), serve.HTTP_PORT) as sock:
                assert download(sock, 1_000_000) == http_server.digest(1_000_000)
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= most
                shown = lab.router.run(["ss", "-tiHn", "src", f"[{OWN[family]}]"])
                sizes = [int(size) for size in re.findall(r"\bmss:(\d+)", shown.stdout)]
                assert sizes
                assert max(sizes) <= most


def test_the_machine_s_own_flows(module_lab: Lab, backend: str) -> None:
    lab = module_lab
    own = config(lab)
    own["lan"]["this_machine"] = True
    with running(lab, own, backend=backend):
        for machine in (lab.router, lab.client("desk")):
            for family in FAMILIES:
                assert peer_seen(machine, target(lab, family)) in upstream(lab, "home")


def test_a_firewall_that_drops_what_it_does_not_know(module_lab: Lab) -> None:
    """Of input and forward: what goes through the device is let through, and no more."""
    lab = module_lab
    lab.router.run(["nft", "-f", "-"], stdin=_STRICT)
    try:
        with running(lab, config(lab), backend="nftables"):
            for family in FAMILIES:
                seen = peer_seen(lab.client("desk"), target(lab, family))
                assert seen in upstream(lab, "home")
                _, end = attempt(
                    lab.client("desk"), target(lab, family, "mirror"), 80, timeout_s=0.5
                )
                assert isinstance(end, TimeoutError)
    finally:
        lab.router.run(["nft", "delete", "table", "inet", "strict"])


@pytest.mark.parametrize("capture", ["lan", "default-route"])
def test_strict_checks_of_sources_by_mark(module_lab: Lab, capture: str) -> None:
    """As beside mesh VPNs: no mark of ours leads a check astray."""
    lab, router = module_lab, module_lab.router
    keys = ("net.ipv4.conf.all.rp_filter", "net.ipv4.conf.all.src_valid_mark")
    before = [router.sysctl(key) for key in keys]
    found = tun_config(lab, {"destination": targets(lab, "web"), "to": "home"}, capture=capture)
    found["lan"]["this_machine"] = capture == "lan"
    try:
        for key in keys:
            router.sysctl(key, "1")
        with running(lab, found) as gateway:
            for machine in (lab.client("desk"), router):
                assert peer_seen(machine, target(lab, 4)) in upstream(lab, "home")
                peer_seen(machine, target(lab, 4, "mirror"))
            assert gateway.counters()["tun_tcp_flows"] >= 2
    finally:
        for key, value in zip(keys, before, strict=True):
            router.sysctl(key, value)


@pytest.mark.parametrize("rp_filter", ["0", "1", "2"])
def test_the_machine_s_own_checks_of_sources(module_lab: Lab, rp_filter: str) -> None:
    """What comes out of the device is from addresses that are routed elsewhere."""
    lab = module_lab
    before = lab.router.sysctl("net.ipv4.conf.all.rp_filter")
    lab.router.sysctl("net.ipv4.conf.all.rp_filter", rp_filter)
    try:
        with running(lab, config(lab), backend="nftables"):
            assert peer_seen(lab.client("desk"), target(lab, 4)) in upstream(lab, "home")
    finally:
        lab.router.sysctl("net.ipv4.conf.all.rp_filter", before)


# --- the end of things ------------------------------------------------------------------------


def test_flows_outlive_a_reload(module_lab: Lab, backend: str) -> None:
    """Whatever the rules say then; and new ones obey them."""
    lab, desk = module_lab, module_lab.client("desk")
    with running(lab, config(lab), backend=backend) as gateway:
        with (
            dial(desk, target(lab, 4), serve.ECHO_PORT) as v4,
            dial(desk, target(lab, 6), serve.ECHO_PORT) as v6,
        ):
            changed = config(lab, "direct") | {"tun": {"mtu": 1400}}
            gateway.reload(changed)
            for sock in (v4, v6):
                sock.sendall(b"still there")
                assert read(sock, 11) == b"still there"
            for family in FAMILIES:
                assert peer_seen(desk, target(lab, family)) == address(desk, family)
        assert "mtu 1400" in lab.router.run(["ip", "link", "show", DEVICE]).stdout
        with pytest.raises(GatewayError, match="cannot change while the device is in use"):
            gateway.reload(config(lab) | {"tun": {"name": "other"}})


def test_flows_outlive_the_device(module_lab: Lab, backend: str) -> None:
    """Somebody removes it: it is made again, and what was in it goes on."""
    lab, desk = module_lab, module_lab.client("desk")
    with running(lab, config(lab), backend=backend, workers=2) as gateway:
        with dial(desk, target(lab, 4), serve.ECHO_PORT) as sock:
            lab.router.run(["ip", "link", "delete", DEVICE])
            sock.sendall(b"still there")
            assert read(sock, 11) == b"still there"
        wait_until(lambda: any(" repaired " in line for line in gateway.log), "the repair")
        for family in FAMILIES:
            assert peer_seen(desk, target(lab, family)) in upstream(lab, "home")


#: The kernel forgets after 3 s by which queue a flow's answers came (TUN_FLOW_EXPIRE).
FORGETFUL_S = 3.3


def test_every_packet_of_a_flow_comes_to_the_worker_that_has_it(module_lab: Lab) -> None:
    """Flows are spread over both; and answers after a pause find their way, too."""
    lab, desk = module_lab, module_lab.client("desk")
    with running(lab, config(lab), backend="nftables", workers=2) as gateway, ExitStack() as open_:
        flows = [
            open_.enter_context(dial(desk, target(lab, FAMILIES[n % 2]), serve.ECHO_PORT))
            for n in range(16)
        ]
        for sock in flows:
            sock.sendall(b"there")
            assert read(sock, 5) == b"there"
        shares = Counter(flow["id"] % 2 for flow in gateway.flows(0))
        assert len(shares) == 2, shares
        before = gateway.counters()
        quiet = [dial(desk, target(lab, family), serve.HTTP_PORT) for family in FAMILIES * 4]
        for sock in quiet:
            open_.enter_context(sock)
            asked = f"GET /slow?count=2&interval={FORGETFUL_S} HTTP/1.0\r\n\r\n"
            sock.sendall(asked.encode())
        for sock in quiet:
            said = b""
            while not said.endswith(b"\r\n\r\n.."):
                said += read(sock, 1)
        for sock in flows:
            sock.sendall(b"still")
            assert read(sock, 5) == b"still"
        dropped = "tun_dropped_no_flow"
        assert gateway.counters().get(dropped, 0) == before.get(dropped, 0)


def index_of(pid: int) -> int:
    """Which worker that is, by its command: FIRST_ID STEP INDEX HANDOVER."""
    return int(Path(f"/proc/{pid}/cmdline").read_text().split("\0")[-3])


def test_the_death_of_a_worker(module_lab: Lab) -> None:
    """Its flows are reset, not left hanging; the other's go on, and another takes its place."""
    lab, desk = module_lab, module_lab.client("desk")
    with running(lab, config(lab), backend="nftables", workers=2) as gateway, ExitStack() as open_:
        flows = []
        for _ in range(24):  # that all go to one worker has a chance of 2^-23
            flows.append(open_.enter_context(dial(desk, target(lab, 4), serve.ECHO_PORT)))
            flows[-1].sendall(b"x")
            assert read(flows[-1], 1) == b"x"
        workers = {int(f["client"].split(":")[-1]): (f["id"] - 1) % 2 for f in gateway.flows(0)}
        assert set(workers.values()) == {0, 1}
        (first,) = (pid for pid in worker_pids(gateway) if index_of(pid) == 0)
        os.kill(first, signal.SIGKILL)
        wait_counter(gateway, "workers_lost")
        for sock in flows:
            sock.sendall(b"x")
            if workers[sock.getsockname()[1]] == 0:
                with pytest.raises(ConnectionError):
                    sock.recv(1)
            else:
                assert read(sock, 1) == b"x"
        for family in FAMILIES * 4:
            assert peer_seen(desk, target(lab, family)) in upstream(lab, "home")


@pytest.mark.parametrize("on_failure", ["closed", "open"])
def test_killed(module_lab: Lab, backend: str, on_failure: str) -> None:
    """The device goes with us. What it took is refused, or routed on; `down` leaves nothing."""
    lab, desk = module_lab, module_lab.client("desk")
    with running(lab, config(lab, on_failure=on_failure), backend=backend) as gateway:
        assert peer_seen(desk, target(lab, 4)) in upstream(lab, "home")
        gateway.process.signal(signal.SIGKILL)
        gateway.process.wait()
        wait_until(lambda: DEVICE not in links(lab), "the device to go")
        if on_failure == "open":
            wait_until(lambda: directly(lab), "the kernel to route on")
        else:
            seen = Witness(lab.internet, *desk.spec.links[0].pair)
            for family in FAMILIES:
                _, end = attempt(desk, target(lab, family), serve.HTTP_PORT, timeout_s=0.5)
                assert isinstance(end, OSError)
            assert seen.packets == 0
            for family in FAMILIES:
                assert peer_seen(desk, target(lab, family, "mirror")) == address(desk, family)
        command(lab, "down", "--run-dir", str(gateway.run_dir))


def directly(lab: Lab) -> bool:
    desk = lab.client("desk")
    try:
        return all(
            peer_seen(desk, target(lab, family), timeout_s=2) == address(desk, family)
            for family in FAMILIES
        )
    except LabError:
        return False


def test_a_device_of_somebody_else_is_left_alone(lab: Lab) -> None:
    lab.router.run(["ip", "tuntap", "add", "dev", DEVICE, "mode", "tun"])
    before = lab.router.snapshot()
    process = lab.start_gateway(config(lab), wait=False).process
    assert process.wait() == 1
    assert "choose another `tun.name`" in "\n".join(process.log)
    lab.router.assert_unchanged(before)
