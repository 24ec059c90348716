"""Manners of flows that relays get wrong: many at once, servers that speak first, half-close."""

from __future__ import annotations

import hashlib
import itertools
import selectors
import socket
import time
from collections.abc import Iterator

import pytest
from traffic import (
    TIMEOUT_S,
    Family,
    dial,
    flow_of,
    read,
    read_all,
    running,
    target,
    wait_counter,
    within,
)

from gateway.lab import http_server, serve
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.process import wait_until
from gateway.lab.stream_servers import BANNER, HALF_CLOSE_BYTES

MANY = 500
SSHD_PORT = 2222
#: Ports of clients that no other flow has had. Where the kernel redirects, two flows of one client
#: port go to one port of ours, so that it gives the second another (nf_nat_setup_info).
PORTS = itertools.count(20001)


@pytest.fixture(scope="module")
def gateway(module_lab: Lab, backend: str, mode: str, workers: int) -> Iterator[GatewayProcess]:
    """Everything goes through the SOCKS server ``home``."""
    with running(
        module_lab, module_lab.config({"to": "home"}), backend=backend, mode=mode, workers=workers
    ) as it:
        yield it


def dial_all(lab: Lab, host: str, port: int, count: int) -> list[socket.socket]:
    """As many connections at once, from one LAN host."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    socks = within(
        lab.client("desk"),
        lambda: [socket.socket(family, socket.SOCK_STREAM) for _ in range(count)],
    )
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            sock.setblocking(False)
            sock.connect_ex((host, port))
            selector.register(sock, selectors.EVENT_WRITE)
        deadline = time.monotonic() + 3 * TIMEOUT_S
        while selector.get_map():
            assert time.monotonic() < deadline, f"{len(selector.get_map())} never connected"
            for key, _ in selector.select(1.0):
                selector.unregister(key.fileobj)
    for sock in socks:
        sock.settimeout(TIMEOUT_S)
    return socks


def test_500_flows_at_once(module_lab: Lab, gateway: GatewayProcess, family: Family) -> None:
    """All are open together, and each gets its own bytes back."""
    host = target(module_lab, family)
    done = gateway.counters().get("closed_done", 0)
    socks = dial_all(module_lab, host, serve.ECHO_PORT, MANY)
    relaying = lambda: [f for f in gateway.flows(0) if f["state"] == "relaying"]  # noqa: E731
    wait_until(lambda: len(relaying()) == MANY, f"{MANY} flows to be relayed", 60)
    for number, sock in enumerate(socks):
        sock.sendall(b"%06d" % number)
    for number, sock in enumerate(socks):
        assert read(sock, 6) == b"%06d" % number
    for sock in socks:
        sock.close()
    wait_counter(gateway, "closed_done", done + MANY)
    wait_until(lambda: gateway.flows(0) == [], "the last flow to end")


def test_a_server_that_speaks_first(
    module_lab: Lab, gateway: GatewayProcess, family: Family
) -> None:
    """Its banner arrives although the client says nothing."""
    host = target(module_lab, family)
    with dial(module_lab.client("kid"), host, serve.BANNER_PORT) as client:
        assert read(client, len(BANNER)) == BANNER


def test_an_ssh_client_reads_the_keys_of_a_real_sshd(
    module_lab: Lab, gateway: GatewayProcess, sshd: str
) -> None:
    """ssh-keyscan runs the protocol up to the key exchange, in both families."""
    for host in module_lab.topology.targets["mirror"]:
        command = ["ssh-keyscan", "-T", "60", "-p", str(SSHD_PORT), "-t", "ed25519", host]
        scanned = module_lab.client("desk").run(command).stdout
        assert sshd in scanned


@pytest.fixture(scope="module")
def sshd(module_lab: Lab) -> str:
    """An sshd on the internet; its public host key."""
    internet, directory = module_lab.internet, module_lab.directory
    key, config = directory / "host_key", directory / "sshd_config"
    internet.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    config.write_text(f"HostKey {key}\nPort {SSHD_PORT}\nPidFile none\nUsePAM no\n")
    # Only an init system makes it, and sshd refuses to start without.
    internet.run(["mkdir", "-p", "/run/sshd"])
    command = ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)]
    ports = [(host, SSHD_PORT) for host in serve.ANY]
    internet.start_listening("sshd", command, *ports)
    return key.with_suffix(".pub").read_text().split()[1]


def test_half_close(module_lab: Lab, gateway: GatewayProcess, family: Family) -> None:
    """A client that has shut its write side still reads 10 MB, whole, to a clean end."""
    host, port = target(module_lab, family), next(PORTS)
    desk = module_lab.client("desk")
    with dial(desk, host, serve.HALF_CLOSE_PORT, source_port=port) as client:
        client.sendall(b"ask")
        client.shutdown(socket.SHUT_WR)
        data = read_all(client)
    assert len(data) == HALF_CLOSE_BYTES
    assert hashlib.sha256(data).hexdigest() == http_server.digest(HALF_CLOSE_BYTES)
    flow = flow_of(gateway, port)
    assert (flow["bytes_up"], flow["bytes_down"]) == (3, HALF_CLOSE_BYTES)
    assert flow["close_reason"] == "done"
