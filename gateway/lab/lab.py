"""The lab: machines out of network namespaces, the servers in them, and the gateway under test.

Nothing outside its own namespaces is touched. Their names carry the process id of the
owner, so that labs run side by side, and what a killed owner left can be found.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gateway.lab import delay, upstreams
from gateway.lab.gateway_process import ENVIRONMENT, GatewayProcess
from gateway.lab.machine import Machine
from gateway.lab.namespaces import FILES, PREFIX, added, ip, listed, remove, require_root
from gateway.lab.process import Process
from gateway.lab.topology import FamilyNumber, Topology
from gateway.lab.topology import Machine as MachineSpec

_serial = itertools.count()

#: Before any link is made: addresses are usable at once, and nothing is learnt or forwarded
#: that a test did not ask for.
_SYSCTLS = (
    "net.ipv4.ip_forward=0",
    "net.ipv6.conf.all.forwarding=0",
    "net.ipv6.conf.default.accept_dad=0",
    "net.ipv6.conf.default.accept_ra=0",
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
)


class Lab:
    """A context manager: built on entry, gone without a trace on exit.

    ``keep`` names it so that no sweep removes it: an owner that ends without leaving the
    context leaves it up, until ``Lab.remove_kept``. ``wan_delay_ms`` is what the cable between
    router and internet delays each packet by, both ways: half of a round trip.
    """

    def __init__(
        self, topology: Topology | None = None, *, keep: bool = False, wan_delay_ms: float = 0
    ) -> None:
        self.topology = topology or Topology.load()
        owner = "keep" if keep else f"{os.getpid()}-{next(_serial)}"
        self._stem = f"{PREFIX}-{owner}-"
        self.directory = FILES / self._stem.removesuffix("-")
        self.machines = {
            name: Machine(spec, self._stem + name, self.directory)
            for name, spec in self.topology.machines.items()
        }
        self._wan_delay_ms = wan_delay_ms
        self._delay = Machine(MachineSpec("delay", (), ()), self._stem + "delay", self.directory)
        self._gateways = itertools.count()
        self.embedded: Process | None = None

    # --- building and removing -----------------------------------------------------------

    def __enter__(self) -> Self:
        """Build it. Raises ``LabError`` without root or ``ip``, leaving nothing behind."""
        require_root()
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove it."""
        self.close()

    def _build(self) -> None:
        # A dead process may have had our process id, and may have left its files.
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(mode=0o755)
        machines = self.machines.values()
        if self._wan_delay_ms:
            ip([f"netns add {self._delay.namespace}"])
        ip(f"netns add {machine.namespace}" for machine in machines)
        for machine in machines:
            machine.run(["sysctl", "-q", "-w", *_SYSCTLS])
        ip(self._cables())
        if self._wan_delay_ms:
            self._start_delay()
        for machine in machines:
            ip(self._addresses(machine), machine.namespace)
        for machine in machines:
            machine.wait_settled()

    def _cables(self) -> Iterable[str]:
        for network in self.topology.networks:
            ends = self.topology.cable(network)
            (left, right) = (
                f"name {link.name} netns {self._stem}{machine.name}" for machine, link in ends
            )
            if network == "wan" and self._wan_delay_ms:
                for end, port in zip((left, right), delay.PORTS, strict=True):
                    inner = f"name {port} netns {self._delay.namespace}"
                    yield f"link add {end} type veth peer {inner}"
            else:
                yield f"link add {left} type veth peer {right}"

    def _start_delay(self) -> None:
        # Without a link-local address a port says nothing of its own.
        ports = (f"link set {port} addrgenmode none up" for port in delay.PORTS)
        ip(ports, self._delay.namespace)
        command = [sys.executable, "-m", "gateway.lab.delay", str(self._wan_delay_ms)]
        process = self._delay.start("cable", command, ENVIRONMENT)
        process.wait_until(lambda: delay.READY in process.log, "the cable to be joined")

    def _addresses(self, machine: Machine) -> Iterable[str]:
        yield "link set lo up"
        for link in machine.spec.links:
            yield f"link set {link.name} up"
            for address in link.addresses:
                yield added(address, link.name)
        if machine is self.internet:
            for extra in self.topology.internet_addresses:
                yield added(extra, machine.spec.link("wan").name)
        for route in machine.spec.routes:
            yield f"route add {route.to} via {route.via}"

    def close(self) -> None:
        """End its processes, remove its namespaces and files."""
        present = listed()
        # The delay first: it ends with an error where its interfaces go away before it.
        for machine in (self._delay, *self.machines.values()):
            if machine.namespace in present:
                machine.stop_all()
                ip([f"netns del {machine.namespace}"])
        shutil.rmtree(self.directory, ignore_errors=True)

    @staticmethod
    def sweep() -> list[str]:
        """Remove labs whose owners are dead; the namespaces that are gone."""
        return remove(lambda owner: owner != "keep" and not Path(f"/proc/{owner}").exists())

    @staticmethod
    def remove_kept() -> list[str]:
        """Remove a lab that was built with ``keep``; the namespaces that are gone."""
        return remove(lambda owner: owner == "keep")

    # --- machines and servers ------------------------------------------------------------

    @property
    def router(self) -> Machine:
        """Where the gateway runs."""
        return self.machines["router"]

    @property
    def internet(self) -> Machine:
        """Where the servers are."""
        return self.machines["internet"]

    def client(self, name: str) -> Machine:
        """A LAN host: ``desk`` or ``kid``. Raises ``KeyError`` for another name."""
        return self.machines[name]

    def start_servers(self) -> Process:
        """HTTP(S), echo, banner and half-close on every address; SOCKS on ``home`` and ``work``.

        The ports are in ``gateway.lab.serve``. The process' log has its records.
        """
        command = [sys.executable, "-m", "gateway.lab.serve", str(self.directory)]
        process = self.internet.start("servers", command, ENVIRONMENT)
        process.wait_until(lambda: '{"event": "ready"}' in process.log, "the servers to listen")
        self.embedded = process
        return process

    def socks_records(self, event: str = "connect") -> list[dict[str, Any]]:
        """What the embedded SOCKS servers were asked: ``accept``, ``connect`` or ``end``.

        Each has ``server`` and ``peer``; a ``connect`` has ``host`` and ``port`` too.
        """
        if self.embedded is None:
            return []
        records = [json.loads(line) for line in self.embedded.log if line.startswith("{")]
        return [record for record in records if record["event"] == event]

    def start_upstream(self, kind: str, upstream: str = "spare") -> Process:
        """A real SOCKS server: ``microsocks``, ``danted``, ``sing-box`` or ``ssh``."""
        directory = self.directory / kind
        directory.mkdir()
        return upstreams.STARTERS[kind](self.internet, self.topology.upstreams[upstream], directory)

    # --- the gateway ---------------------------------------------------------------------

    def config(
        self, *rules: Mapping[str, Any], outbounds: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """A configuration for the router with these rules; UDP is not diverted.

        Without ``outbounds`` it has ``home`` and ``work``, the embedded SOCKS servers.
        """
        lan = [link for link in self.router.spec.links if link.network != "wan"]
        return {
            "lan": {
                "interfaces": [link.name for link in lan],
                "subnets": {
                    link.network: [str(n) for n in self.topology.networks[link.network]]
                    for link in lan
                },
            },
            "inbound": {"udp": "off"},
            "state_dir": "state",
            "outbounds": dict(outbounds or {name: self.socks(name) for name in ("home", "work")}),
            "rules": [dict(rule) for rule in rules],
        }

    def socks(self, upstream: str, family: FamilyNumber = 4) -> dict[str, Any]:
        """The ``outbounds:`` entry for a SOCKS server of the topology.

        Without a pool, so that the server sees as many connections as there are flows.
        """
        server = self.topology.upstreams[upstream]
        entry: dict[str, Any] = {
            "type": "socks5",
            "server": server.addresses.of(family),
            "port": server.port,
            "pool": "off",
        }
        if server.username is not None:
            entry |= {"username": server.username, "password": server.password}
        return entry

    def start_gateway(
        self,
        config: Mapping[str, Any] | str,
        *,
        backend: str | None = None,
        mode: str | None = None,
        workers: int | None = None,
        machine: Machine | None = None,
        program: Sequence[str] = (),
        wait: bool = True,
    ) -> GatewayProcess:
        """Run the gateway on the router (or ``machine``) until it is ready.

        ``backend``, ``mode`` (``tproxy``, ``redirect``) and ``workers`` override the
        configuration, which must then be a mapping. ``program`` stands in for ``gateway run``,
        with the same options. Raises ``LabError`` with its log when it ends instead.
        """
        name = f"gateway{next(self._gateways)}"
        directory = self.directory / name
        directory.mkdir(mode=0o700)
        chosen = {"backend": backend, "tcp": mode, "workers": workers}
        if overrides := {key: value for key, value in chosen.items() if value is not None}:
            config = _with_inbound(config, overrides)
        process = GatewayProcess(machine or self.router, name, directory, config, program)
        if wait:
            process.wait_ready()
        return process


def _with_inbound(
    config: Mapping[str, Any] | str, overrides: Mapping[str, object]
) -> dict[str, Any]:
    """A copy of ``config`` with these keys of ``inbound`` set."""
    if isinstance(config, str):
        raise TypeError("a configuration that is text takes no overrides")
    return {**config, "inbound": {**config.get("inbound", {}), **overrides}}
