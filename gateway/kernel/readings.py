"""Readings of the machine that only ``gateway doctor`` needs, beside those of ``probe``.

Nothing here changes anything. What cannot be read is left out: a doctor must work on a
machine that is ill, and without root.
"""

from __future__ import annotations

import platform
import re
import resource
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pyroute2 import IPRoute

from gateway.errors import GatewayError
from gateway.kernel import host_firewall, libnftables
from gateway.kernel.children import undisturbed
from gateway.kernel.listening import listening
from gateway.kernel.privilege import effective
from gateway.marks import NFT_TABLE, ROUTE_PROTOCOL, Mark
from gateway.plan.host import Interface

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ForeignRule:
    """An ip rule of somebody else. ``table`` is None where it looks up no table."""

    family: Literal["ipv4", "ipv6"]
    priority: int
    table: int | None
    mark: Mark | None


@dataclass(frozen=True, slots=True)
class ForeignRoute:
    """A route of somebody else in a table that we use."""

    family: Literal["ipv4", "ipv6"]
    table: int
    destination: str


@dataclass(frozen=True, slots=True)
class ForeignDrop:
    """A firewall chain of somebody else that refuses packets: at forward, by its policy.

    ``legacy``: it belongs to iptables-legacy, not to nftables.
    """

    where: str
    hook: Literal["input", "forward"]
    legacy: bool = False


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket; ``process`` is 0 and ``command`` empty where not to be seen.

    ``parent``: of the process; the gateway's workers are its children.
    """

    address: str
    port: int
    process: int = 0
    command: str = ""
    parent: int = 0


@dataclass(frozen=True, slots=True)
class Readings:
    """One look at the machine. ``file_limit`` is the hard RLIMIT_NOFILE of this process."""

    python: str
    kernel: str
    capabilities: frozenset[str]
    file_limit: int
    bridges: frozenset[str] = frozenset()
    rules: tuple[ForeignRule, ...] = ()
    routes: tuple[ForeignRoute, ...] = ()
    drops: tuple[ForeignDrop, ...] = ()
    listeners: tuple[Listener, ...] = ()


def read(interfaces: Iterable[Interface], tables: frozenset[int], port: int) -> Readings:
    """Read everything. ``tables`` are the routing tables that we use, ``port`` the listener's."""
    rules, routes = _routing(tables)
    return Readings(
        python=platform.python_version(),
        kernel=platform.release(),
        capabilities=frozenset(f"CAP_{each.name}" for each in effective()),
        file_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        bridges=frozenset(
            one.name for one in interfaces if Path(f"/sys/class/net/{one.name}/bridge").exists()
        ),
        rules=rules,
        routes=routes,
        drops=(*_nft_drops(), *_legacy_drops("ip"), *_legacy_drops("ip6")),
        listeners=_listeners_on(port),
    )


def _routing(
    tables: frozenset[int],
) -> tuple[tuple[ForeignRule, ...], tuple[ForeignRoute, ...]]:
    rules: list[ForeignRule] = []
    routes: list[ForeignRoute] = []
    families: tuple[tuple[Literal["ipv4", "ipv6"], int], ...] = (("ipv4", 2), ("ipv6", 10))
    with IPRoute() as netlink:
        for family, number in families:
            rules += [
                _foreign_rule(family, message)
                for message in netlink.get_rules(family=number)
                if message.get_attr("FRA_PROTOCOL") != ROUTE_PROTOCOL
            ]
            routes += [
                ForeignRoute(family, message.get_attr("RTA_TABLE"), _destination(message))
                for message in netlink.get_routes(family=number)
                if message.get_attr("RTA_TABLE") in tables and message["proto"] != ROUTE_PROTOCOL
            ]
    return tuple(rules), tuple(routes)


def _foreign_rule(family: Literal["ipv4", "ipv6"], message: Any) -> ForeignRule:
    value, mask = message.get_attr("FRA_FWMARK"), message.get_attr("FRA_FWMASK")
    return ForeignRule(
        family=family,
        priority=message.get_attr("FRA_PRIORITY") or 0,
        table=message.get_attr("FRA_TABLE"),
        mark=Mark(value or 0, 0xFFFF_FFFF if mask is None else mask) if value or mask else None,
    )


def _destination(message: Any) -> str:
    address = message.get_attr("RTA_DST")
    return f"{address}/{message['dst_len']}" if address else "default"


def _nft_drops() -> list[ForeignDrop]:
    drops = [
        ForeignDrop(f"nft {chain.name}", "input")
        for chain in host_firewall.read()
        if chain.may_refuse and chain.hook == "input"
    ]
    try:
        listing = libnftables.query("list chains")
    except GatewayError:
        return drops
    return drops + forward_drops(item["chain"] for item in listing if "chain" in item)


def forward_drops(chains: Iterable[dict[str, Any]]) -> list[ForeignDrop]:
    """Foreign base chains that drop what is forwarded, among libnftables-json(5) chains."""
    return [
        ForeignDrop(f"nft {chain['family']} {chain['table']} {chain['name']}", "forward")
        for chain in chains
        if chain.get("hook") == "forward"
        and chain.get("policy") == "drop"
        and chain["table"] != NFT_TABLE
    ]


def _legacy_drops(family: Literal["ip", "ip6"]) -> list[ForeignDrop]:
    """Dropping policies of the legacy filter table; looking at an unused table would create it."""
    try:
        if "filter" not in (_PROC / f"self/net/{family}_tables_names").read_text().split():
            return []
        with undisturbed():
            saved = subprocess.run(
                [f"{family}tables-legacy-save", "-t", "filter"],
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            )
    except (OSError, subprocess.SubprocessError):
        return []
    return legacy_drops(family, saved.stdout)


def legacy_drops(family: Literal["ip", "ip6"], saved: str) -> list[ForeignDrop]:
    """Dropping built-in chains in the text of iptables-save(8)."""
    hooks: dict[str, Literal["input", "forward"]] = {"INPUT": "input", "FORWARD": "forward"}
    found = re.findall(r"^:(INPUT|FORWARD) DROP ", saved, re.MULTILINE)
    return [
        ForeignDrop(f"{family}tables-legacy {chain}", hooks[chain], legacy=True) for chain in found
    ]


def _listeners_on(port: int) -> tuple[Listener, ...]:
    found = {one.inode: one for one in listening() if one.port == port}
    if not found:
        return ()
    owners = _socket_owners(frozenset(found))
    return tuple(
        Listener(one.address, one.port, *owners.get(inode, (0, "", 0)))
        for inode, one in found.items()
    )


def _socket_owners(inodes: frozenset[int]) -> dict[int, tuple[int, str, int]]:
    """Process, command and parent that hold each socket; without root only our own are seen."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    owners: dict[int, tuple[int, str, int]] = {}
    for process in _PROC.glob("[0-9]*"):
        # A process may end, or close a descriptor, while it is looked at.
        with suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                name = _link_target(descriptor)
                if name in wanted:
                    # proc_pid_stat(5): the command is in parentheses and may have any others in it.
                    stat = (process / "stat").read_text()
                    command, _, rest = stat.partition("(")[2].rpartition(")")
                    owners[wanted[name]] = (int(process.name), command, int(rest.split()[1]))
    return owners


def _link_target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""
