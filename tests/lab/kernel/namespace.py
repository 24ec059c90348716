"""A network namespace of a test's own, with a LAN and a WAN interface, and code run inside it."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from pyroute2 import netns

P = ParamSpec("P")
T = TypeVar("T")

_serial = itertools.count()
_COUNTERS = re.compile(r"\[\d+:\d+\]")


class Namespace:
    """``call`` runs a function in a thread that lives in the namespace; ``run`` a command.

    Network namespaces belong to threads (setns(2)), and what the thread starts is there
    too. The thread is the namespace's own and ends with it.
    """

    def __init__(self) -> None:
        self.name = f"gwk{os.getpid()}-{next(_serial)}"
        _checked("ip", "netns", "add", self.name)
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

    def close(self) -> None:
        self._thread.shutdown()
        _checked("ip", "netns", "delete", self.name)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self.start(function, *args, **kwargs).result()

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return self._thread.submit(function, *args, **kwargs)

    def run(self, *command: str) -> str:
        return _checked("ip", "netns", "exec", self.name, *command)

    def sh(self, script: str) -> str:
        return self.run("sh", "-e", "-c", script)

    def state(self) -> str:
        """All that a gateway may change, as text: firewalls, sets, routing, sysctls.

        Counters are left out, and legacy tables in which nothing is: a table that was once
        looked at stays.
        """
        sections = [
            self.run("nft", "-s", "list", "ruleset"),
            *(_filled_tables(self.run(f"{six}-legacy-save")) for six in ("iptables", "ip6tables")),
            re.sub(r" (initval|hashsize) \S+", "", self.run("ipset", "save")),
            *(self.run("ip", six, "rule") for six in ("-4", "-6")),
            *(self.run("ip", six, "route", "show", "table", "all") for six in ("-4", "-6")),
            self.sh(
                "grep -rs . /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf"
                " /proc/sys/net/ipv4/ip_forward | grep -v stable_secret | sort"
            ),
        ]
        return "\n".join(re.sub(r" expires \d+sec", "", section) for section in sections)


def _filled_tables(saved: str) -> str:
    text = _COUNTERS.sub("", "".join(f"{s}\n" for s in saved.splitlines() if s[:1] != "#"))
    tables = re.split(r"(?<=^COMMIT\n)", text, flags=re.MULTILINE)
    return "".join(t for t in tables if "\n-A" in t or "DROP" in t or " - " in t)


def _checked(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout
