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
#: A line of the list, and one of strace's log; what a descriptor is stands behind it.
LISTED = re.compile(r"^    (\w+) (\d+)  ", re.MULTILINE)
LOGGED = re.compile(r"^(\w+)\((.*)= (-?\d+)(?:<.*>)?(?: (\w+))?")
CLOSED = re.compile(r"^close\(\d+<TCP", re.MULTILINE)
#: What is done for all flows that are ready, or for others than flows: the interpreter's memory
#: and threads among it. Those have clocks of their own (the dead-man set), as has what they wake
#: the loop by, a pair of unix sockets.
SHARED = {
    *("epoll_wait", "futex", "getpid", "gettid", "write", "read", "restart_syscall"),
    *("brk", "madvise", "mmap", "mprotect", "mremap", "munmap"),
    *("clone", "clone3", "rt_sigprocmask"),
}
WOKEN = re.compile(r"^\d+<UNIX")


def listed() -> dict[str, int]:
    assert tcp.__doc__ is not None
    return {name: int(number) for name, number in LISTED.findall(tcp.__doc__)}


def seen(log: Path) -> Counter[str]:
    """Calls that did something: a queue that is found empty is not a flow's."""
    calls = [match for line in log.read_text().splitlines() if (match := LOGGED.match(line))]
    return Counter(
        name
        for name, arguments, _, error in (call.groups() for call in calls)
        if error != "EAGAIN" and not WOKEN.match(arguments)
    )


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
        command = ["strace", "-qq", "-yy", "-o", str(log), "-p", str(gateway.pid)]
        tracer = lab.router.start(f"strace{family}", command)
        traced = Path(f"/proc/{gateway.pid}/status")
        wait_until(lambda: "TracerPid:\t0" not in traced.read_text(), "strace to attach")
        for number in range(FLOWS):
            flow()
            # It has ended before the next one: what two have in common would be counted once.
            wait_until(
                lambda expected=number + 1: len(CLOSED.findall(log.read_text())) >= 2 * expected,
                "the end of the flow",
            )
        tracer.signal(signal.SIGINT)
        tracer.wait()
        wait_counter(gateway, "closed_done", FLOWS)
    calls = seen(log)
    assert {name: calls[name] for name in calls.keys() - SHARED} == {
        name: FLOWS * number for name, number in listed().items()
    }
