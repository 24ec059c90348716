"""Accept storms: a gateway that is its own client, bounded so that it does not fill the machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from gateway.errors import GatewayError
from gateway.lab.gateway_process import ENVIRONMENT, GatewayProcess, gateway_command
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.process import happens
from gateway.lab.trials import Asking, Outcome, Seen

#: A gateway whose sockets are not marked, with the options of ``gateway run``.
NAIVE: Final = (sys.executable, str(Path(__file__).with_name("naive_gateway.py")))
#: So many accepts for one connection are a storm.
STORM: Final = 50
#: Ends a storm before it fills the machine.
DESCRIPTORS: Final = 300


def becomes(
    lab: Lab,
    config: dict[str, Any],
    host: str,
    *,
    backend: str | None = None,
    program: Sequence[str] = NAIVE,
) -> Seen:
    """What one connection of the router's own becomes, with a gateway like that."""
    naive = lab.start_gateway(config, backend=backend, program=program)
    limit_descriptors(lab.router, naive)
    with Asking(lab.router, host) as asking:
        asking.connect()
        looped = happens(partial(storm, naive))
        seen = asking.step() or Seen(Outcome.SILENT)
    end_storm(lab.router, naive)
    return Seen(Outcome.LOOP, "an accept storm") if looped else seen


def storm(gateway: GatewayProcess) -> bool:
    """Whether it has accepted more than a storm's worth: each flow has two descriptors.

    In a storm it has none left to accept on its control socket, so that nobody can ask it. One
    that has run out of them is over within a second, which it tells.
    """
    if len(list(Path(f"/proc/{gateway.pid}/fd").iterdir())) > 2 * STORM:
        return True
    with suppress(GatewayError):
        return gateway.counters().get("flows_accepted", 0) > STORM
    return False


def limit_descriptors(machine: Machine, gateway: GatewayProcess) -> None:
    """Let it have few enough to end by itself."""
    machine.run(["prlimit", f"--pid={gateway.pid}", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}"])


def end_storm(machine: Machine, gateway: GatewayProcess) -> None:
    """Kill it, and remove what it left."""
    gateway.kill()
    down = gateway_command("down", "--run-dir", str(gateway.run_dir))
    machine.run(down, environment=ENVIRONMENT)
    # For as long as it remembers them, conntrack would redirect a new connection with the ports of
    # one of the storm's.
    machine.run(["conntrack", "-F"])
