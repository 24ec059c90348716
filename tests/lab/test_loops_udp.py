"""Loops of datagrams through proxies and name servers that know nothing of us."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from datagrams import ECHO, Relay, Served, answering, ask, echo, served, talking
from traffic import (
    FAMILIES,
    Family,
    address,
    command,
    listen,
    new_socket,
    peer_seen,
    read,
    running,
    target,
    upstream,
    wait_counter,
    within,
)

from gateway.breaker import SHARE, WINDOW
from gateway.lab.gateway_process import GatewayProcess, gateway_command
from gateway.lab.lab import Lab
from gateway.lab.process import LabError, wait_until
from gateway.lab.storm import NAIVE
from gateway.sniff.dns import question_name

#: Where nobody answers.
SILENT = 9997


@pytest.fixture(scope="module")
def servers(module_lab: Lab) -> Iterator[Served]:
    with answering(module_lab, {ECHO: echo}) as servers:
        yield servers


def looping(gateway: GatewayProcess) -> list[dict[str, Any]]:
    return [flow for flow in gateway.flows() if flow["close_reason"] == "loop"]


# --- a proxy in the LAN ----------------------------------------------------------------------


@contextmanager
def proxy_in_the_lan(lab: Lab, known_by: Family) -> Iterator[str]:
    """A SOCKS server that is known by its address of one family; that address."""
    host = address(lab.client("desk"), known_by)
    relay = Relay(lab.client("desk"), host)
    try:
        yield host
    finally:
        relay.close()


def through(lab: Lab, host: str, *rules: dict[str, Any]) -> dict[str, Any]:
    outbounds = {"desk": {"type": "socks5", "server": host, "port": 1080}}
    config = lab.config(*rules, {"to": "desk"}, outbounds=outbounds)
    config["inbound"] |= {"udp": "tproxy", "workers": 1}
    return config | {"udp": {"flows": 3 * WINDOW}}


def test_a_proxy_that_is_diverted_to_itself(module_lab: Lab, servers: Served) -> None:
    """Undetected, one datagram takes all the flows that there may be."""
    lab = module_lab
    with (
        proxy_in_the_lan(lab, 6) as known,
        running(lab, through(lab, known), program=NAIVE) as naive,
    ):
        with talking(lab.client("kid"), target(lab, 4)) as sock:
            sock.send(b"once")
            wait_counter(naive, "udp_flows", 2 * WINDOW)
        naive.kill()
        command(lab, "down", "--run-dir", str(naive.run_dir))


def test_the_breaker_ends_a_loop_of_datagrams(
    module_lab: Lab, servers: Served, family: Family
) -> None:
    """And says which rule is missing; with that rule there is no loop."""
    lab, kid = module_lab, module_lab.client("kid")
    host, own = target(lab, family), address(lab.client("desk"), family)
    exempt = {"source": own, "to": "direct"}
    with proxy_in_the_lan(lab, 6 if family == 4 else 4) as known:
        with running(lab, through(lab, known)) as gateway:
            with talking(kid, host) as sock:
                sock.send(b"once")
                wait_counter(gateway, "udp_closed_loop", SHARE)
            (said,) = {flow["detail"] for flow in looping(gateway)} - {""}
            assert f"{{source: {own}, to: direct}}" in said
            assert gateway.counters()["udp_flows"] <= 2 * WINDOW
        with running(lab, through(lab, known, exempt)) as gateway:
            with talking(kid, host) as sock:
                assert ask(sock) == b"hello"
            assert "udp_closed_loop" not in gateway.counters()


REPORTS = 3 * WINDOW


def test_a_client_that_repeats_itself_unheard_is_left_alone(
    module_lab: Lab, servers: Served
) -> None:
    """The same report again and again, each by a socket of its own, to whom never answers."""
    lab, kid = module_lab, module_lab.client("kid")
    heard: list[str] = []

    def note(data: bytes, peer: Any) -> None:
        del peer
        heard.append(data.decode())

    config = lab.config({"to": "out"}, outbounds={"out": {"type": "direct", "interface": "wan0"}})
    config["inbound"] |= {"udp": "tproxy", "workers": 1}
    with running(lab, config) as gateway:
        for family in FAMILIES:
            host = target(lab, family)
            servers.add(lab.internet, host, SILENT, note)
            kind = socket.AF_INET6 if family == 6 else socket.AF_INET
            socks = within(
                kid, lambda k=kind: [socket.socket(k, socket.SOCK_DGRAM) for _ in range(REPORTS)]
            )
            for sock in socks:
                with sock:
                    sock.sendto(f"report {family}".encode(), (host, SILENT))
                    # Held up for a fifth of a second while on trial, it would look like a loop.
                    time.sleep(0.001)
        wait_until(lambda: len(heard) == 2 * REPORTS, "all that was reported")
        assert not looping(gateway)


# --- names that are looked up by the server they name ------------------------------------------

PROXY = "proxy.lab.example"


def answer(server: str) -> Any:
    """A name server that knows one name, by its IPv4 address (RFC 1035 section 4.1)."""

    def answered(query: bytes, peer: Any) -> bytes | None:
        del peer
        question = query[12 : query.index(b"\0", 12) + 5]
        known = question_name(query) == PROXY and question[-4:-2] == b"\0\1"
        head = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if known else b"\0\0") + bytes(4) + question
        record = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(server)
        return head + record if known else head

    return answered


def message(sock: socket.socket) -> bytes:
    """One over TCP, behind its length (RFC 1035 section 4.2.2)."""
    return read(sock, int.from_bytes(read(sock, 2), "big"))


def serve_streams(listener: socket.socket, answered: Any) -> None:
    """Answer the same over TCP, until the socket is shut down."""
    with suppress(OSError):
        while True:
            sock, peer = listener.accept()
            # Who asks may go before the end: a gateway that is stopped, or somebody impatient.
            with sock, suppress(OSError, AssertionError):
                said = answered(message(sock), peer)
                sock.sendall(len(said).to_bytes(2, "big") + said)


class Forwarder:
    """A name server on a machine that asks another, each time by a socket of its own."""

    def __init__(self, lab: Lab, host: str, onward: str, over: str) -> None:
        self._lab, self._onward = lab, onward
        self._ask = {"udp": self._by_datagram, "tcp": self._by_stream}[over]
        self._sock = new_socket(lab.router, host, socket.SOCK_DGRAM)
        self._sock.settimeout(None)
        self._sock.bind((host, 53))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                query, peer = self._sock.recvfrom(600)
                if not query:  # it was shut down
                    return
                with suppress(OSError, AssertionError):  # the answer may break off
                    self._sock.sendto(self._ask(query), peer)

    def _by_datagram(self, query: bytes) -> bytes:
        with new_socket(self._lab.router, self._onward, socket.SOCK_DGRAM) as sock:
            sock.settimeout(2)
            sock.connect((self._onward, 53))
            sock.send(query)
            return sock.recv(600)

    def _by_stream(self, query: bytes) -> bytes:
        with new_socket(self._lab.router, self._onward) as sock:
            sock.settimeout(2)
            sock.connect((self._onward, 53))
            sock.sendall(len(query).to_bytes(2, "big") + query)
            return message(sock)

    def close(self) -> None:
        """End."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


@pytest.fixture
def name_server(module_lab: Lab, family: Family) -> Iterator[str]:
    """One on the internet, that knows the proxy."""
    host = target(module_lab, family, "mirror")
    with served() as servers:
        known = module_lab.topology.upstreams["home"].addresses.ipv4
        servers.add(module_lab.internet, host, 53, answer(known))
        listener = listen(module_lab.internet, host, 53)
        listener.settimeout(None)
        work = (listener, answer(known))
        threading.Thread(target=serve_streams, args=work, daemon=True).start()
        yield host
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def by_name(lab: Lab, *rules: dict[str, Any]) -> dict[str, Any]:
    """Everything to ``home``, whose server is given by its name; own traffic, too."""
    home = {**lab.socks("home"), "server": PROXY}
    config = lab.config(*rules, {"to": "home"}, outbounds={"home": home})
    config["lan"]["this_machine"] = True
    config["inbound"] |= {"udp": "tproxy", "workers": 1}
    return config


def asking(path: Path, resolver: str) -> list[str]:
    """The gateway, on a machine that asks this name server."""
    path.write_text(f"nameserver {resolver}\noptions timeout:3 attempts:1\n", encoding="utf-8")
    mounted = f'mount --bind {path} "$(realpath /etc/resolv.conf)" && exec "$@"'
    return ["sh", "-c", mounted, "sh", *gateway_command("run")]


def test_a_name_that_its_own_server_is_to_find_refuses_the_start(
    module_lab: Lab, name_server: str, tmp_path: Path
) -> None:
    """It names the rule; with it, the gateway starts, and looks the name up again and again."""
    lab, program = module_lab, asking(tmp_path / "resolv.conf", name_server)
    refused = lab.start_gateway(by_name(lab), program=program, wait=False)
    assert refused.process.wait() == 1
    rule = {"destination": name_server, "port": 53, "to": "direct"}
    said = "\n".join(refused.log)
    assert f"{PROXY} is looked up at {name_server}" in said
    assert f"{{destination: {name_server}, port: 53, to: direct}}" in said
    with running(lab, by_name(lab, rule), program=program) as gateway:
        assert peer_seen(lab.client("desk"), target(lab, 4)) in upstream(lab, "home")
        assert "udp_closed_loop" not in gateway.counters()


def arrives(lab: Lab) -> bool:
    """Whether a flow is carried by the server of that name."""
    with suppress(LabError):
        return peer_seen(lab.client("desk"), target(lab, 4)) in upstream(lab, "home")
    return False


@pytest.mark.parametrize(("family", "over"), [(4, "udp"), (4, "tcp"), (6, "udp")])
def test_a_name_server_here_that_asks_by_the_server(
    module_lab: Lab, name_server: str, tmp_path: Path, family: Family, over: str
) -> None:
    """Whom it asks is not known before: it is warned of, caught in the act, and harmless."""
    lab, desk, host = module_lab, module_lab.client("desk"), target(module_lab, 4)
    here = "127.0.0.1" if family == 4 else "::1"
    program = asking(tmp_path / "resolv.conf", here)
    forwarder = Forwarder(lab, here, name_server, over)
    try:
        with running(lab, by_name(lab), program=program) as gateway:
            assert any("USER_OF_THE_NAME_SERVER" in line for line in gateway.log)
            assert peer_seen(desk, host) in upstream(lab, "home")
            # A change of the network has every name looked up again.
            lab.router.run(["ip", "address", "add", "192.0.2.77/32", "dev", "lo"])
            wait_counter(gateway, {"udp": "udp_closed_loop", "tcp": "closed_loop"}[over])
            lab.router.run(["ip", "address", "del", "192.0.2.77/32", "dev", "lo"])
            details = [flow["detail"] for flow in looping(gateway)]
            assert all(f"looks {PROXY} up by outbound home" in said for said in details)
            assert all(f"{{destination: {name_server}, port: 53," in said for said in details)
            wait_until(lambda: arrives(lab), "a flow to arrive")
    finally:
        forwarder.close()
