"""The list of a flow's system calls, in ``gateway.inbound.tcp``, is what strace(1) sees."""

from __future__ import annotations

import re
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from traffic import Family, dial, running, target, wait_counter

from gateway.inbound import tcp
from gateway.lab import serve
from gateway.lab.lab import Lab
from gateway.lab.process import wait_until

FLOWS = 5
#: A line of the list, and one of strace's log.
LISTED = re.compile(r"^    (\w+) (\d+)  ", re.MULTILINE)
LOGGED = re.compile(r"^\d+ +(\w+)\((.*)= (-?\d+)(?: (\w+))?")
#: What is done for all flows that are ready, or for others than flows.
SHARED = {"epoll_wait", "futex", "getpid", "write", "read", "restart_syscall"}


def listed() -> dict[str, int]:
    assert tcp.__doc__ is not None
    return {name: int(number) for name, number in LISTED.findall(tcp.__doc__)}


def seen(log: Path) -> Counter[str]:
    """Calls that did something: a queue that is found empty is not a flow's."""
    calls = [match for line in log.read_text().splitlines() if (match := LOGGED.match(line))]
    return Counter(name for name, _, _, error in (c.groups() for c in calls) if error != "EAGAIN")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_flow_makes_the_calls_that_are_listed(module_lab: Lab, family: Family) -> None:
    lab, desk = module_lab, module_lab.client("desk")
    home = {**lab.socks("home"), "handshake": "strict", "pool": "off"}
    log = lab.directory / f"strace{family}.txt"

    def flow() -> None:
        with dial(desk, target(lab, family), serve.ECHO_PORT) as client:
            client.sendall(b"ping")
            assert client.recv(4) == b"ping"

    config = lab.config({"to": "home"}, outbounds={"home": home}) | {"log": {"level": "error"}}
    with running(lab, config, workers=1) as gateway:
        command = ["strace", "-f", "-qq", "-o", str(log), "-p", str(gateway.pid)]
        tracer = lab.router.start(f"strace{family}", command)
        traced = Path(f"/proc/{gateway.pid}/status")
        wait_until(lambda: "TracerPid:\t0" not in traced.read_text(), "strace to attach")
        for number in range(FLOWS):
            flow()
            # It has ended before the next one: what two have in common would be counted once.
            wait_until(
                lambda expected=number + 1: log.read_text().count("close(") >= 2 * expected,
                "the end of the flow",
            )
        tracer.signal(signal.SIGINT)
        tracer.wait()
        wait_counter(gateway, "closed_done", FLOWS)
    calls = seen(log)
    assert {name: calls[name] for name in calls.keys() - SHARED} == {
        name: FLOWS * number for name, number in listed().items()
    }
