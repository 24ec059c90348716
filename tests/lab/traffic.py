"""What the lab tests send from its machines, and how they look at what became of it."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import netns

from gateway.lab import namespaces
from gateway.lab.gateway_process import ENVIRONMENT, GatewayProcess, gateway_command
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.process import LabError, wait_until
from gateway.lab.topology import FAMILIES as FAMILIES
from gateway.lab.topology import FamilyNumber as Family

T = TypeVar("T")
TIMEOUT_S = 20.0
IPERF_PORT = 5201

#: curl's exit statuses (curl(1)) that tests look for.
CURL_REFUSED, CURL_TIMEOUT = 7, 28


@contextmanager
def running(lab: Lab, config: Mapping[str, Any] | str, **options: Any) -> Iterator[GatewayProcess]:
    """A gateway on the router for a while; then the router must be as it was before.

    ``options`` are those of ``Lab.start_gateway``.
    """
    before = lab.router.snapshot()
    gateway = lab.start_gateway(config, **options)
    try:
        yield gateway
    finally:
        status = gateway.stop() if gateway.process.alive else None
    assert status in (0, None), "\n".join(gateway.log)
    lab.router.assert_unchanged(before)


def command(lab: Lab, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a ``gateway`` command on the router, to its end."""
    return lab.router.run(gateway_command(*arguments), environment=ENVIRONMENT, check=check)


def labs_of(owner: int | str) -> list[str]:
    """The namespaces of the labs that a process has, or of the one that was kept (``keep``)."""
    return [name for name in namespaces.listed() if name.startswith(f"gwlab-{owner}-")]


# --- addresses -------------------------------------------------------------------------------


def target(lab: Lab, family: Family, name: str = "web") -> str:
    """The address of a host on the internet."""
    return lab.topology.targets[name].of(family)


def targets(lab: Lab, *names: str) -> list[str]:
    """Both addresses of hosts on the internet, for a rule's ``destination``."""
    return [address for name in names for address in lab.topology.targets[name]]


def address(machine: Machine, family: Family, network: str | None = None) -> str:
    """A machine's own address: of its link in ``network``, or of its last link."""
    link = machine.spec.link(network) if network else machine.spec.links[-1]
    return link.pair.of(family)


def upstream(lab: Lab, name: str) -> set[str]:
    """The addresses that a SOCKS server connects on from."""
    return set(lab.topology.upstreams[name].addresses)


# --- sockets ---------------------------------------------------------------------------------


def within(machine: Machine, work: Callable[[], T]) -> T:
    """What ``work`` returns inside the machine's network namespace.

    A socket belongs to the namespace that it was made in for good, so only making it
    needs this. Namespaces are each thread's own (setns(2)), hence the thread.
    """

    def entered() -> T:
        netns.setns(machine.namespace, flags=0)
        return work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(entered).result()


def new_socket(machine: Machine, host: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket of the machine, for the family of ``host``; its waits are bounded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = within(machine, lambda: socket.socket(family, kind))
    sock.settimeout(TIMEOUT_S)
    return sock


def dial(
    machine: Machine,
    host: str,
    port: int,
    *,
    source_port: int = 0,
    source: str = "",
    device: str = "",
    timeout_s: float = TIMEOUT_S,
) -> socket.socket:
    """A TCP connection from the machine. Raises ``OSError`` as connect(2) does."""
    sock = new_socket(machine, host)
    sock.settimeout(timeout_s)
    try:
        if device:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        if source_port or source:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((source, source_port))
        sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def attempt(
    machine: Machine, host: str, port: int, timeout_s: float = TIMEOUT_S
) -> tuple[int, bytes | OSError]:
    """Connect, say nothing, wait for a byte: the source port, and what came of it."""
    with new_socket(machine, host) as sock:
        sock.settimeout(timeout_s)
        sock.bind(("", 0))  # the port could not be asked for after an early reset
        source_port: int = sock.getsockname()[1]
        try:
            sock.connect((host, port))
            return source_port, sock.recv(1)
        except OSError as error:
            return source_port, error


def listen(machine: Machine, host: str, port: int) -> socket.socket:
    """A listening socket on the machine; the kernel accepts for it until its backlog is full."""
    sock = new_socket(machine, host)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(64)
    return sock


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the peer's end."""
    parts = []
    while part := sock.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def read(sock: socket.socket, count: int) -> bytes:
    """Exactly so many bytes."""
    data = bytearray()
    while len(data) < count:
        part = sock.recv(count - len(data))
        assert part, f"the peer ended after {len(data)} of {count} bytes"
        data += part
    return bytes(data)


# --- programs --------------------------------------------------------------------------------


def url(host: str, path: str, port: int = 80) -> str:
    """An HTTP address."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}{path}"


def curl(
    machine: Machine, address: str, *options: str, timeout_s: float = TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """curl on the machine; ``returncode`` says how it ended."""
    command = ["curl", "-sSgf", "-m", f"{timeout_s:g}", *options, address]
    return machine.run(command, check=False)


def peer_seen(machine: Machine, host: str, port: int = 80, timeout_s: float = TIMEOUT_S) -> str:
    """The address that an HTTP server of the lab sees when the machine asks it.

    Raises ``LabError`` with curl's words where there is no answer.
    """
    done = curl(machine, url(host, "/whoami", port), timeout_s=timeout_s)
    if done.returncode:
        raise LabError(f"{machine.spec.name} asked {host}: {done.stderr.strip()}")
    return str(json.loads(done.stdout)["peer"])


def iperf3(lab: Lab, machine: Machine, host: str, *options: str) -> dict[str, Any]:
    """The sums of a test from the machine, by a server of its own (iperf3(1), ``--json``).

    A server that goes on to another test refuses its client for a moment between the two.
    """
    server = lab.internet.start_listening("iperf3", ["iperf3", "-s"], ("", IPERF_PORT))
    try:
        done = machine.run(["iperf3", "-J", "-c", host, *options])
    finally:
        server.stop()
    sums: dict[str, Any] = json.loads(done.stdout)["end"]
    return sums


# --- what the gateway says -------------------------------------------------------------------


def flow_of(gateway: GatewayProcess, port: int) -> dict[str, Any]:
    """The record of the flow whose client has had this port last, once it is closed."""
    found: list[dict[str, Any]] = []

    def closed() -> bool:
        its = [flow for flow in gateway.flows() if flow["client"].endswith(f":{port}")]
        found[:] = sorted(its, key=lambda flow: float(flow["started"]))[-1:]
        return bool(found) and found[0]["state"] == "closed"

    wait_until(closed, f"the flow from port {port} to be recorded")
    return found[0]


def reset_flow(
    gateway: GatewayProcess, machine: Machine, host: str, port: int = 80
) -> dict[str, Any]:
    """The record of a flow that the gateway answers with a reset."""
    source_port, end = attempt(machine, host, port)
    assert isinstance(end, ConnectionResetError), end
    return flow_of(gateway, source_port)


def worker_pids(gateway: GatewayProcess) -> list[int]:
    """The gateway's child processes."""
    children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


def wait_counter(gateway: GatewayProcess, name: str, least: int = 1) -> None:
    """Until a counter has got so far."""
    wait_until(lambda: gateway.counters().get(name, 0) >= least, f"{name} to reach {least}")


def serve_http_on(machine: Machine, ports: str) -> None:
    """Let the machine's HTTP server answer on a range of ports as well."""
    chains = "".join(
        f"chain {hook} {{\ntype nat hook {hook} priority -100\n"
        f"tcp dport {ports} redirect to :80\n}}\n"
        for hook in ("prerouting", "output")
    )
    machine.run(["nft", "-f", "-"], stdin=f"table inet more_ports {{\n{chains}}}\n")


class Witness:
    """Counts, on a machine, the packets that carry the address of another.

    One table of its own, at the first hook that a packet meets.
    """

    def __init__(self, machine: Machine, *sources: str) -> None:
        self._machine = machine
        rules = "\n".join(
            f"{'ip6' if ':' in source else 'ip'} saddr {source} counter" for source in sources
        )
        machine.run(
            ["nft", "-f", "-"],
            stdin="table inet witness\ndelete table inet witness\n"
            "table inet witness {\nchain seen {\n"
            f"type filter hook prerouting priority -400\n{rules}\n}}\n}}\n",
        )

    @property
    def packets(self) -> int:
        """How many there were."""
        command = ["nft", "-j", "list", "table", "inet", "witness"]
        listing = json.loads(self._machine.run(command).stdout)["nftables"]
        return sum(
            part["counter"]["packets"]
            for item in listing
            if "rule" in item
            for part in item["rule"]["expr"]
            if "counter" in part
        )
