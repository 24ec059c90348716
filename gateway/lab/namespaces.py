"""The lab's network namespaces by name: making, finding and removing them with ``ip``."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from gateway.lab.process import LabError, wait_until

PREFIX = "gwlab"
#: Each lab has a directory here, for its logs and configurations.
FILES = Path(tempfile.gettempdir())
#: ``gwlab-OWNER-...``: the process id of the owner, or ``keep``.
_NAME = re.compile(rf"{PREFIX}-(?P<owner>[0-9]+|keep)(-|$)")


def require_root() -> None:
    """Raise ``LabError`` without the right to make and remove namespaces."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root: it makes network namespaces", "run it with sudo")


def ip(commands: Iterable[str], namespace: str | None = None) -> None:
    """Run ``ip`` commands, one a line, in one go. Raises ``LabError`` at the first that fails."""
    where = [] if namespace is None else ["-n", namespace]
    try:
        done = subprocess.run(
            ["ip", *where, "-batch", "-"],
            input="\n".join(commands) + "\n",
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError("there is no `ip` command", "apt install iproute2") from error
    if done.returncode != 0:
        raise LabError(f"cannot build the lab: ip: {done.stderr.strip()}")


def added(address: object, device: str) -> str:
    """The command of ``ip`` that gives an address, ``ADDRESS[/LENGTH]``, to a device.

    One of IPv6 can be bound at once by ``nodad`` (``ip-address(8)``) alone: on ``lo`` and with
    ``accept_dad=0``, too, it is tentative until a worker of the kernel has looked at it.
    """
    return f"address add {address} dev {device}{' nodad' if ':' in str(address) else ''}"


def listed() -> list[str]:
    """Every named namespace of this machine."""
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    return [line.split()[0] for line in done.stdout.splitlines() if line]


def kill_processes(namespace: str) -> None:
    """Kill every process in a namespace of the lab. Raises ``LabError`` when one stays."""

    def empty() -> bool:
        command = ["ip", "netns", "pids", namespace]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        pids = [int(pid) for pid in done.stdout.split()]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    wait_until(empty, f"processes in {namespace} to end")


def remove(which: Callable[[str], bool]) -> list[str]:
    """Remove the labs, with processes and files, whose owner ``which`` names; their namespaces."""
    require_root()
    namespaces = [name for name in listed() if _owned(name, which)]
    for namespace in namespaces:
        kill_processes(namespace)
        # Two sweeps may run at once; the slower one finds nothing left to delete.
        with suppress(LabError):
            ip([f"netns del {namespace}"])
    for directory in FILES.glob(f"{PREFIX}-*"):
        if _owned(directory.name, which):
            shutil.rmtree(directory, ignore_errors=True)
    return namespaces


def _owned(name: str, which: Callable[[str], bool]) -> bool:
    match = _NAME.match(name)
    return match is not None and which(match["owner"])
