"""The gateway under test: always a real process in the router's namespace."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml

import gateway
from gateway.control.client import ControlClient
from gateway.errors import GatewayError
from gateway.lab.machine import Machine
from gateway.lab.process import Process

RECENT = 10_000

#: Where a child finds this very package, whether it is installed or a checkout.
PACKAGE_PARENT = str(Path(gateway.__file__).resolve().parent.parent)
ENVIRONMENT = {
    "PYTHONPATH": PACKAGE_PARENT,
    "PYTHONUNBUFFERED": "1",
    # Else each of hundreds of gateways would compile all of it, where the owner keeps no bytecode.
    "PYTHONDONTWRITEBYTECODE": "",
}


def gateway_command(*arguments: str) -> list[str]:
    """The ``gateway`` command of this checkout; run it with ``ENVIRONMENT``."""
    return [sys.executable, "-m", "gateway", *arguments]


class GatewayProcess:
    """``gateway run`` on a machine, with a run directory of its own."""

    def __init__(
        self,
        machine: Machine,
        name: str,
        directory: Path,
        config: str | Mapping[str, Any],
        program: Sequence[str] = (),
    ) -> None:
        """``program`` stands in for ``gateway run``, with the same options."""
        self.run_dir = directory
        self.config_path = directory / "gateway.yaml"
        self.configure(config)
        self.control = ControlClient(directory)
        options = ("--config", str(self.config_path), "--run-dir", str(self.run_dir))
        command = [*(program or gateway_command("run")), *options]
        self._start = partial(machine.start, name, command, ENVIRONMENT)
        self.process: Process = self._start()

    def restart(self) -> None:
        """Once it has ended: start it again, in the same run directory, until it is ready."""
        self.process = self._start()
        self.wait_ready()

    def configure(self, config: str | Mapping[str, Any]) -> None:
        """Write another configuration; it is read at the next reload."""
        text = config if isinstance(config, str) else yaml.safe_dump(dict(config), sort_keys=False)
        self.config_path.write_text(text, encoding="utf-8")

    def wait_ready(self) -> None:
        """Until it says that it runs. Raises ``LabError`` with its log when it ends instead."""
        self.process.wait_until(self._running, "the gateway to be ready")

    def _running(self) -> bool:
        with suppress(GatewayError):
            return bool(self.control.get("/health")["state"] == "running")
        return False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def log(self) -> list[str]:
        """The lines it has logged so far."""
        return self.process.log

    def flows(self, recent: int = RECENT) -> list[dict[str, Any]]:
        """Live flows and then closed ones, latest first, as the control API has them."""
        flows: list[dict[str, Any]] = self.control.get(f"/flows?recent={recent}")["flows"]
        return flows

    def counters(self) -> dict[str, int]:
        """Totals since its start."""
        counters: dict[str, int] = self.control.get("/counters")["counters"]
        return counters

    def placements(self) -> list[dict[str, Any]]:
        """Where each rule is decided, as ``gateway plan`` says."""
        placements: list[dict[str, Any]] = self.control.get("/plan")["placements"]
        return placements

    def reload(self, config: str | Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Reload, with a new configuration if given. Raises ``GatewayError`` if refused."""
        if config is not None:
            self.configure(config)
        return self.control.request("POST", "/reload")

    def stop(self) -> int:
        """SIGTERM, as an init system stops it; its exit status."""
        return self.process.stop()

    def kill(self) -> int:
        """SIGKILL: nothing of it can clean up."""
        return self.process.kill()
