"""A network namespace of a test's own, with a LAN and a WAN interface, and code run inside it."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from pyroute2 import netns

from gateway.lab.process import wait_until
from gateway.lab.snapshot import Snapshot

P = ParamSpec("P")
T = TypeVar("T")

_serial = itertools.count()


class Namespace:
    """``call`` runs a function in a thread that lives in the namespace; ``run`` a command.

    Network namespaces belong to threads (setns(2)), and what the thread starts is there
    too. The thread is the namespace's own and ends with it.
    """

    def __init__(self) -> None:
        self.name = f"gwk{os.getpid()}-{next(_serial)}"
        _exec("ip", "netns", "add", self.name)
        self._thread = ThreadPoolExecutor(1, initializer=netns.setns, initargs=(self.name,))
        self.sh(
            """
            ip link set lo up
            ip link add lan0 type veth peer name lan0-far
            ip link add wan0 type veth peer name wan0-far
            for link in lan0 lan0-far wan0 wan0-far; do
                # No link-local addresses: they would come up at some later moment.
                ip link set $link addrgenmode none up
            done
            ip address add 192.168.20.1/24 dev lan0
            ip address add fd00:20::1/64 dev lan0 nodad
            ip address add 203.0.113.2/24 dev wan0
            ip address add 2001:db8:113::2/64 dev wan0 nodad
            ip route add default via 203.0.113.1
            ip route add default via 2001:db8:113::1
            """
        )
        wait_until(self._settled, "the links to come up")

    def close(self) -> None:
        self._thread.shutdown()
        _exec("ip", "netns", "delete", self.name)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self.start(function, *args, **kwargs).result()

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return self._thread.submit(function, *args, **kwargs)

    def run(self, *command: str) -> str:
        return self._exec(command).stdout

    def sh(self, script: str) -> str:
        return self.run("sh", "-e", "-c", script)

    def state(self) -> str:
        """All that a gateway may change, as text."""
        lines = itertools.chain.from_iterable(Snapshot.take(self._exec).sections.values())
        return "\n".join(lines)

    def _settled(self) -> bool:
        """Whether the kernel's workers have added what links and addresses bring with them."""
        listed = self.run("ip", "-6", "route", "show", "table", "local").splitlines()
        kinds = [line.split()[0] for line in listed]
        return (kinds.count("local"), kinds.count("multicast")) == (3, 4)

    def _exec(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return _exec("ip", "netns", "exec", self.name, *command)


def _exec(*command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done
