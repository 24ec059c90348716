"""A machine of the lab: a network namespace, and the processes in it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from gateway.lab.namespaces import kill_processes
from gateway.lab.process import LabError, Process, wait_until
from gateway.lab.snapshot import Snapshot
from gateway.lab.topology import Machine as MachineSpec

RUN_TIMEOUT_S = 60.0


class Machine:
    """One namespace. ``spec`` has its addresses; ``namespace`` is what ``ip netns`` calls it."""

    def __init__(self, spec: MachineSpec, namespace: str, directory: Path) -> None:
        self.spec = spec
        self.namespace = namespace
        self._directory = directory
        self._processes: list[Process] = []
        # Its tables are its own, so that it need not wait for all others that have iptables(8).
        self._environment = {"XTABLES_LOCKFILE": str(directory / f"{spec.name}-xtables.lock")}

    def inside(self, *command: str) -> list[str]:
        """The command that runs ``command`` in this machine."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def run(
        self,
        command: Sequence[str],
        *,
        check: bool = True,
        timeout_s: float = RUN_TIMEOUT_S,
        stdin: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end and return output and status.

        Raises ``LabError`` with what it wrote when it fails (unless ``check`` is false) or
        takes longer than ``timeout_s``.
        """
        try:
            done = subprocess.run(
                self.inside(*command),
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout_s,
                env={**os.environ, **self._environment, **(environment or {})},
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{self._named(command)} took longer than {timeout_s:g} s") from error
        if check and done.returncode != 0:
            said = (done.stderr + done.stdout).strip()
            raise LabError(f"{self._named(command)} failed ({done.returncode}): {said}")
        return done

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> Process:
        """Start a process that runs until the lab ends; its log is named after it."""
        log = self._directory / f"{self.spec.name}-{name}.log"
        inherited = {**self._environment, **(environment or {})}
        process = Process(name, self.inside(*command), log, inherited)
        self._processes.append(process)
        return process

    def start_listening(
        self, name: str, command: Sequence[str], *ports: tuple[str, int]
    ) -> Process:
        """Start a server and wait until it listens on each TCP address and port.

        An empty address stands for any.
        """
        process = self.start(name, command)
        for address, port in ports:
            process.wait_until(partial(self.listens, address, port), f"{address}:{port} to listen")
        return process

    def listens(self, address: str, port: int) -> bool:
        """Whether something here listens on that TCP port (of ``address``, if not empty)."""
        host = f"[{address}]" if ":" in address else address
        chosen = f"src {host}:{port}" if address else f"sport = :{port}"
        command = ["ss", "-Htln", "-N", self.namespace, chosen]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return bool(done.stdout.strip())

    def sysctl(self, key: str, value: str | None = None) -> str:
        """Read a kernel setting, after setting it when ``value`` is given."""
        if value is not None:
            self.run(["sysctl", "-q", "-w", f"{key}={value}"])
        return self.run(["sysctl", "-n", key]).stdout.strip()

    def wait_settled(self) -> None:
        """Until each link has its link-local address, and each address its route.

        The kernel adds that address and its routes once the carrier is up, and any route to an
        address of IPv6 a moment after the address; a snapshot taken before would differ from one
        taken after.
        """
        command = ["ip", "-n", self.namespace, "-6", "-oneline", "-batch", "-"]
        asked = "address\nroute show table local\n"

        def settled() -> bool:
            done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True)
            told = done.stdout.splitlines()
            addresses = [line for line in told if " inet6 " in line]
            links = sum(" scope link " in line for line in addresses)
            routes = sum(line.startswith("local ") for line in told)
            return links == len(self.spec.links) and routes == len(addresses)

        wait_until(settled, f"the links of {self.namespace} to come up")

    def snapshot(self) -> Snapshot:
        """Firewall rules, sets, policy routing, routes and settings as they are now."""
        return Snapshot.take(self.run)

    def assert_unchanged(self, before: Snapshot) -> None:
        """Raise ``AssertionError``, with the difference, unless all is as it was."""
        difference = before.difference(self.snapshot())
        if difference:
            raise AssertionError(f"{self.namespace} is not as it was:\n{difference}")

    def stop_all(self) -> None:
        """End what was started here, and what those left behind, then collect them."""
        for process in self._processes:
            process.signal(signal.SIGTERM)
        for process in self._processes:
            with suppress(LabError):
                process.wait(5.0)
        kill_processes(self.namespace)
        for process in self._processes:
            process.wait()
        self._processes.clear()

    def _named(self, command: Sequence[str]) -> str:
        return f"{self.spec.name}: {' '.join(command)}"
