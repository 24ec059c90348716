"""ICMP from the LAN: echo by ping sockets, errors of the network's and of ours, and bounds."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from beyond import LINK, MTU, NOBODY, add_beyond, hops
from traffic import (
    FAMILIES,
    TIMEOUT_S,
    Family,
    address,
    command,
    running,
    target,
    targets,
    wait_counter,
    within,
)

from gateway.kernel.error_queue import ask_for_errors, told
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.process import wait_until
from gateway.wire.icmp_error import checksum

PREFIX = {4: 24, 6: 64}
#: Requests a second that one device may send.
RATE = 50
#: Nobody has it, and rules send it to a SOCKS server.
NOWHERE: dict[Family, str] = {4: "198.51.100.99", 6: "2001:db8:51::99"}


def config(lab: Lab, icmp: str) -> dict[str, Any]:
    """``blocked`` is direct in the kernel, ``mirror`` goes by SOCKS, all else by ``wan``."""
    rules: list[dict[str, Any]] = [
        {"destination": targets(lab, "blocked"), "to": "direct"},
        {"destination": [*targets(lab, "mirror"), *NOWHERE.values()], "to": "home"},
        {"protocol": "icmp", "to": "wan"},
        {"to": "home"},
    ]
    outbounds = {"home": lab.socks("home"), "wan": {"type": "direct", "interface": "wan0"}}
    found = lab.config(*rules, outbounds=outbounds)
    found["inbound"]["icmp"] = icmp
    found["icmp"] = {"rate_per_device": RATE}
    return found


@pytest.fixture(scope="module")
def far_lab(module_lab: Lab) -> Lab:
    """With a host two hops away, behind a narrow link."""
    add_beyond(module_lab)
    return module_lab


@pytest.fixture(scope="module")
def gateway(far_lab: Lab, backend: str, workers: int) -> Iterator[GatewayProcess]:
    with running(far_lab, config(far_lab, "tun"), backend=backend, workers=workers) as gateway:
        yield gateway


@pytest.fixture
def desk(far_lab: Lab) -> Machine:
    return far_lab.client("desk")


# The other combinations differ in nothing that ICMP meets.
@pytest.fixture(scope="module")
def mode() -> str:
    return "tproxy"


def ping(machine: Machine, host: str, *options: str, count: int = 1) -> str:
    """What ping(8) prints. An answer is waited for until it is there.

    But once there is one, ping waits for the last of several no longer than twice as long as the
    slowest took, or the interval: ``-w`` has it go on until so many are answered.
    """
    command = ["ping", "-n", "-c", str(count), "-i", "0.1", "-W", f"{TIMEOUT_S:g}", *options, host]
    done = machine.run(command, check=False)
    return done.stdout + done.stderr


def received(text: str) -> int:
    """How many answers ping counted."""
    found = re.search(r"(\d+) received", text)
    assert found, text
    return int(found[1])


def transmitted(text: str) -> int:
    """How many requests ping sent."""
    found = re.search(r"(\d+) packets transmitted", text)
    assert found, text
    return int(found[1])


def rise(gateway: GatewayProcess, name: str, before: dict[str, int]) -> int:
    """By how much a counter has risen."""
    return gateway.counters().get(name, 0) - before.get(name, 0)


def test_echo_goes_onward_and_comes_back(
    far_lab: Lab, gateway: GatewayProcess, desk: Machine, family: Family
) -> None:
    """Small ones and fragmented ones; and the client sees the hops that a routed one sees."""
    before = gateway.counters()
    all_of_them = ("-w", f"{TIMEOUT_S:g}")
    small = ping(desk, target(far_lab, family), *all_of_them, count=3)
    large = ping(desk, target(far_lab, family), "-s", "4000", *all_of_them, count=2)
    assert (received(small), received(large)) == (3, 2), small + large
    assert "4008 bytes" in large
    asked = transmitted(small) + transmitted(large)  # more than five, where answers were late
    wait_until(
        lambda: rise(gateway, "icmp_echo_replies", before) == asked, "all of them to be answered"
    )
    routed = ping(desk, target(far_lab, family, "blocked"))
    assert rise(gateway, "icmp_echo_replies", before) == asked
    ttl = re.compile(r"ttl=(\d+)")
    assert set(ttl.findall(small)) == set(ttl.findall(routed)) != set()
    flows = [flow for flow in gateway.flows() if flow["protocol"] == "icmp"]
    assert {flow["outbound"] for flow in flows} == {"wan"}
    assert any(flow["client"].strip("[").startswith(address(desk, family)) for flow in flows)


def test_what_socks_cannot_carry_is_refused(
    far_lab: Lab, gateway: GatewayProcess, desk: Machine, family: Family
) -> None:
    before = gateway.counters()
    text = ping(desk, target(far_lab, family, "mirror"))
    assert received(text) == 0
    assert ("Packet filtered" if family == 4 else "Administratively prohibited") in text
    assert rise(gateway, "icmp_refused_not-carried", before) == 1
    placed = {each["rule"]: each["reason"] for each in gateway.placements()}
    (reason,) = (why for rule, why in placed.items() if rule.startswith("rules[1]"))
    assert "ICMP: refused, as SOCKS5 carries none" in reason
    if family == 6:
        return  # what is said is the same
    said = command(
        far_lab, "explain", address(desk, family), f"{target(far_lab, family, 'mirror')}/icmp",
        "--config", str(gateway.config_path),
    )  # fmt: skip
    assert "SOCKS5 carries no ICMP: the gateway refuses it" in said.stdout


def test_the_path_shows_its_hops(
    far_lab: Lab, gateway: GatewayProcess, desk: Machine, family: Family
) -> None:
    """Each hop says that it is one: traceroute -I does nothing else."""
    del gateway
    far = LINK[family][1]
    for hop, hosts in enumerate(hops(far_lab, family), 1):
        text = ping(desk, far, "-t", str(hop))
        told = re.search(r"From (\S+) .*exceeded", text)
        assert told, text
        assert told[1] in hosts
    assert received(ping(desk, far, "-t", "3")) == 1


def test_an_error_of_the_networks_reaches_the_client(
    gateway: GatewayProcess, desk: Machine, family: Family
) -> None:
    del gateway
    text = ping(desk, NOBODY[family])
    assert re.search(r"Destination Host Unreachable|Address unreachable", text), text


def test_a_path_tells_what_it_takes(gateway: GatewayProcess, desk: Machine, family: Family) -> None:
    """Path MTU discovery, across a link of 1280."""
    del gateway
    far = LINK[family][1]
    text = ping(desk, far, "-M", "do", "-s", "1400", count=3)
    assert re.search(rf"mtu ?[=:] ?{MTU}", text), text
    assert received(text) == 0
    assert received(ping(desk, far, "-M", "do", "-s", "1200")) == 1
    if family == 4:  # whoever allows it is cut on the way
        assert received(ping(desk, far, "-M", "dont", "-s", "1400")) == 1
    desk.run(["ip", f"-{family}", "route", "flush", "cache"])


def test_a_storm_is_bounded(
    far_lab: Lab, gateway: GatewayProcess, desk: Machine, family: Family
) -> None:
    """No more is answered than the rate allows: in the seconds that it took."""
    before, began = gateway.counters(), time.monotonic()
    text = ping(desk, target(far_lab, family), "-i", "0.002", count=400)

    def answered() -> int:
        return rise(gateway, "icmp_echo_replies", before)

    # ping does not wait for what the gateway has still to read.
    wait_until(
        lambda: answered() + rise(gateway, "tun_dropped_icmp_rate", before) == 400,
        "each to be answered or dropped",
    )
    seconds = int(time.monotonic() - began) + 2  # that there were at least a part of, at most
    assert 0 < received(text) <= answered() <= RATE * seconds
    wait_until(
        lambda: received(ping(desk, target(far_lab, family), "-W", "1")) == 1, "a second to pass"
    )


def test_what_else_icmp_asks_is_refused(
    far_lab: Lab, gateway: GatewayProcess, desk: Machine
) -> None:
    """A timestamp request (RFC 792) has no answer, but an error."""
    before = gateway.counters()
    host = target(far_lab, 4)
    request = bytearray(struct.pack("!BBHHHIII", 13, 0, 0, 7, 1, 0, 0, 0))
    request[2:4] = checksum(bytes(request)).to_bytes(2, "big")
    kind, protocol = socket.SOCK_RAW, socket.IPPROTO_ICMP
    with within(desk, lambda: socket.socket(socket.AF_INET, kind, protocol)) as sock:
        sock.settimeout(TIMEOUT_S)
        sock.sendto(request, (host, 0))
        answer = b""
        while not answer[28:][20:].startswith(bytes(request[:8])):  # it hears what others are told
            answer, (source, _) = sock.recvfrom(2000)
    assert (source, *answer[20:22]) == (host, 3, 13)
    assert rise(gateway, "tun_dropped_icmp_other", before) == 1


def test_other_protocols_are_refused(
    far_lab: Lab, gateway: GatewayProcess, desk: Machine, family: Family
) -> None:
    """GRE, which no outbound carries: by the error that says so; and nothing leaves."""
    before = gateway.counters()
    host = target(far_lab, family)
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    with within(desk, lambda: socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_GRE)) as sock:
        sock.settimeout(TIMEOUT_S)
        ask_for_errors(sock)
        sock.connect((host, 0))
        sock.send(bytes(8))
        wait_until(lambda: rise(gateway, "tun_dropped_protocol", before) == 1, "it to be refused")
        _, control, _, _ = sock.recvmsg(100, 500, socket.MSG_ERRQUEUE)
    (error,) = told(control)
    assert error[:3] == ((4, 3, 2) if family == 4 else (6, 4, 1))
    assert error.info == (0 if family == 4 else 6)


def test_no_more_is_written_than_was_read(
    far_lab: Lab, gateway: GatewayProcess, desk: Machine
) -> None:
    """Each packet that nobody wants has one answer at most, and none comes back as it went."""
    before, host = passed(far_lab), target(far_lab, 4)
    message = struct.pack("!BBHHHIII", 13, 0, 0, 7, 1, 0, 0, 0)
    message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    sent = 0
    for protocol, packet in (
        (socket.IPPROTO_GRE, bytes(8)),
        (socket.IPPROTO_IGMP, b"\x11" + bytes(7)),
        (socket.IPPROTO_ICMP, message),
        (socket.IPPROTO_ICMP, b"\x03" + bytes(7)),  # an error about nothing
        (socket.IPPROTO_ICMP, b"\x08" + bytes(7)),  # its checksum is wrong
    ):
        raw = partial(socket.socket, socket.AF_INET, socket.SOCK_RAW, protocol)
        with within(desk, raw) as sock:
            for _ in range(20):
                sock.sendto(packet, (host, 0))
                sent += 1
    wait_until(lambda: passed(far_lab)[0] - before[0] >= sent, "all of them to be read")
    # The kernel's own packets are read as well, and may have stood in for one of them.
    wait_counter(gateway, "tun_dropped_icmp_checksum", 20)
    read, written = (now - then for now, then in zip(passed(far_lab), before, strict=True))
    assert written <= read <= sent + 20


def passed(lab: Lab) -> tuple[int, int]:
    """Packets that were read from the device, and written."""
    said = lab.router.run(["ip", "-j", "-s", "link", "show", "gateway0"]).stdout
    (link,) = json.loads(said)
    return link["stats64"]["tx"]["packets"], link["stats64"]["rx"]["packets"]


def test_killed(lab: Lab) -> None:
    """Nothing leaks by ICMP, and ``down`` puts all back, who may ping included."""
    desk, before = lab.client("desk"), lab.router.snapshot()
    gateway = lab.start_gateway(config(lab, "tun"))
    for family in FAMILIES:
        assert received(ping(desk, target(lab, family))) == 1
    assert lab.router.sysctl("net.ipv4.ping_group_range").split() == ["0", "0"]
    gateway.kill()
    for family in FAMILIES:
        wait_until(
            partial(_unanswered, desk, target(lab, family)), "the device to be gone with its owner"
        )
        assert received(ping(desk, target(lab, family, "blocked"))) == 1
    command(lab, "down", "--run-dir", str(gateway.run_dir))
    lab.router.assert_unchanged(before)


def _unanswered(machine: Machine, host: str) -> bool:
    return received(ping(machine, host, "-W", "1")) == 0


def test_nobody_is_answered_for_unless_it_is_written_down(lab: Lab) -> None:
    """By ``pretend`` alone; and with ``direct`` nothing of this happens at all."""
    desk = lab.client("desk")
    for icmp, answered in (("tun", 0), ("pretend", 1)):
        with running(lab, config(lab, icmp)) as gateway:
            for family in FAMILIES:
                assert received(ping(desk, NOWHERE[family])) == answered
            counters = gateway.counters()
            assert counters.get("icmp_pretended", 0) == 2 * answered
            gateway.reload(config(lab, "direct"))
            for family in FAMILIES:
                assert received(ping(desk, target(lab, family))) == 1
            assert gateway.counters().get("icmp_echo_replies", 0) == 0
