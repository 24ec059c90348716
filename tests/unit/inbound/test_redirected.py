"""REDIRECT in a namespace of its own, where conntrack is at work: redirected, and dialled."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

NAMESPACE = f"gwf{os.getpid()}r"

RULES = """
table inet test {
    chain output {
        type nat hook output priority -100
        ip daddr 10.91.0.1 tcp dport 80 redirect to :7895
        ip6 daddr fd91::1 tcp dport 80 redirect to :7895
    }
}
"""

SCRIPT = """
import asyncio, socket
from gateway.inbound.tcp import open_listeners
from gateway.kernel.reactor import run, running_reactor

class Printer:
    def accepted(self, client, source, destination):
        print("to", destination, flush=True)
        client.close()
    def refused(self, reason, source):
        print(reason, flush=True)

async def main():
    listeners = open_listeners(running_reactor(), "redirect", 7895, Printer(), ipv6=True)
    for host, port in (
        ("10.91.0.1", 80), ("fd91::1", 80),
        ("127.0.0.1", 7895), ("::1", 7895), ("10.91.0.1", 7895), ("fd91::1", 7895),
    ):
        def dial():
            try:
                with socket.create_connection((host, port), timeout=10) as sock:
                    sock.recv(1)
            except ConnectionResetError:
                pass  # it may come before connect(2) has returned
        await asyncio.to_thread(dial)

run(main())
"""


@pytest.fixture
def namespace() -> Iterator[str]:
    try:
        for line in (
            f"netns add {NAMESPACE}",
            f"-n {NAMESPACE} link set lo up",
            f"-n {NAMESPACE} addr add 10.91.0.1/32 dev lo",
            f"-n {NAMESPACE} addr add fd91::1/128 dev lo nodad",
        ):
            subprocess.run(["ip", *line.split()], check=True)
        inside = ["ip", "netns", "exec", NAMESPACE]
        subprocess.run([*inside, "nft", "-f", "-"], input=RULES, text=True, check=True)
        yield NAMESPACE
    finally:
        subprocess.run(["ip", "netns", "del", NAMESPACE], check=False)


@pytest.mark.usefixtures("root")
def test_redirected_flows_are_told_from_dialled_ones(namespace):
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == [
        "to 10.91.0.1:80",
        "to [fd91::1]:80",
        *["not-diverted"] * 4,
    ]
