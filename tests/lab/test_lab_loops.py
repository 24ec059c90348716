"""`gateway lab loops` as a person runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from gateway.lab.gateway_process import ENVIRONMENT, gateway_command
from gateway.lab.namespaces import listed
from gateway.lab.process import Process, wait_until


def loops(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, run to its end."""
    return subprocess.run(
        gateway_command("lab", "loops", *arguments),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, **ENVIRONMENT},
    )


def test_one_part() -> None:
    """Its cells for programs, on standard output, and for people how far it is."""
    done = loops("server-here", "--details", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (part,) = found["parts"]
    assert (found["ok"], part["part"], part["error"]) == (True, "server-here", "")
    assert {cell["family"] for cell in part["cells"]} == {4, 6}
    assert all(cell["ok"] for cell in part["cells"])
    assert "1 of 1: The proxy listens on loopback" in done.stderr
    assert done.stderr.count("  ok ") == len(part["cells"])


def test_a_part_that_is_none() -> None:
    """The error names the nearest; nothing is tried."""
    done = loops("halfs")
    assert done.returncode == 1
    assert "halves" in done.stderr


def test_what_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a part: no namespace, no control group, and no file."""
    command = gateway_command("lab", "loops", "programs", "--details")
    run = Process("loops", command, tmp_path / "log", ENVIRONMENT)
    wait_until(lambda: any("  ok  " in line for line in run.log), "the first cell", 120)
    assert of(run.pid)
    run.signal(signal.SIGINT)
    assert run.wait(120) == 130
    assert of(run.pid) == []


def of(owner: int) -> list[str]:
    """What a lab of that process has on this machine."""
    name = f"gwlab-{owner}-"
    # Not by a glob: control groups of others go while it looks.
    below = (each for where in os.walk("/sys/fs/cgroup") for each in where[1])
    groups = (group for group in below if group.startswith(name))
    files = (str(path) for path in Path("/tmp").glob(f"{name}*"))
    return [*(each for each in listed() if each.startswith(name)), *groups, *files]
