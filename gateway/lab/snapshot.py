"""What a machine's kernel holds that a gateway could have changed, as comparable text."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import unified_diff

_SYSCTLS = ("ipv4/ip_forward", "ipv4/ping_group_range", "ipv4/conf", "ipv6/conf")

#: Section, and the command that prints it; ``nft -s`` leaves counters and expiry times out.
#: sysctl(8) would read all that the kernel has, to show a part; a secret that is not set cannot
#: be read.
COMMANDS: dict[str, tuple[str, ...]] = {
    "nftables": ("nft", "-s", "list", "ruleset"),
    "iptables (legacy, IPv4)": ("iptables-legacy-save",),
    "iptables (legacy, IPv6)": ("ip6tables-legacy-save",),
    "ipset": ("ipset", "save"),
    "ip rules (IPv4)": ("ip", "-4", "rule"),
    "ip rules (IPv6)": ("ip", "-6", "rule"),
    "routes (IPv4)": ("ip", "-4", "route", "show", "table", "all"),
    "routes (IPv6)": ("ip", "-6", "route", "show", "table", "all"),
    "sysctls": (
        *("grep", "-r", "--exclude=stable_secret", ""),
        *(f"/proc/sys/net/{name}" for name in _SYSCTLS),
    ),
}

#: Routes learnt from router advertisements count down, and so do elements of an ipset, the last
#: word of whose lines that is; ipset makes numbers of its own up.
_NOISE = re.compile(
    r" expires -?[0-9]+sec| (?:initval|hashsize) \S+|(?<=[0-9]) timeout [0-9]+$", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One reading, by section."""

    sections: dict[str, tuple[str, ...]]

    @classmethod
    def take(cls, run: Callable[[Sequence[str]], subprocess.CompletedProcess[str]]) -> Snapshot:
        """Read a machine through ``run``, which executes a command there."""
        sections = {}
        for name, command in COMMANDS.items():
            lines = _NOISE.sub("", run(command).stdout).splitlines()
            sections[name] = _without_noise(lines) if "legacy" in name else tuple(lines)
        return cls(sections)

    def difference(self, after: Snapshot) -> str:
        """What changed from here to ``after``, as a unified diff; empty when nothing did."""
        return "\n".join(
            line
            for name, before in self.sections.items()
            for line in unified_diff(
                before, after.sections[name], f"{name} before", f"{name} after", lineterm="", n=1
            )
        )

    @property
    def lines(self) -> int:
        """How many lines were read and are compared."""
        return sum(map(len, self.sections.values()))


def _without_noise(lines: Sequence[str]) -> tuple[str, ...]:
    """Legacy tables without counters and comments; a table that says nothing is left out.

    The kernel registers a table when somebody first looks at it, and keeps it: an empty
    one with its built-in chains at ACCEPT is the same as none, and their order means nothing.
    """
    kept: list[list[str]] = []
    table: list[str] = []
    for line in lines:
        if line.startswith("*"):
            table = [line]
        elif line.startswith(":"):
            chain, policy, _ = line.split(maxsplit=2)
            if policy != "ACCEPT":
                table.append(f"{chain} {policy}")
        elif line.startswith("-"):
            table.append(line)
        elif line == "COMMIT" and len(table) > 1:
            kept.append(table)
    return tuple(line for table in sorted(kept) for line in table)
