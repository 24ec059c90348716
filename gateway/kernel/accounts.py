"""Who runs what on this machine: users, control groups, and the owner of a listening port."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from gateway.kernel.listening import listening

#: The one place where nft looks for the path of a control group (cgroups(7), nft(8) ``socket``).
CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
_ANY: Final = ("0.0.0.0", "::")  # noqa: S104 - read, not bound


def users(names: Iterable[str]) -> dict[str, int]:
    """The numbers of those that exist. Blocks: a directory service may be asked."""
    found = {}
    for name in names:
        try:
            found[name] = pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    return found


def groups(names: Iterable[str]) -> dict[str, int]:
    """The same of groups."""
    found = {}
    for name in names:
        try:
            found[name] = grp.getgrnam(name).gr_gid
        except KeyError:
            continue
    return found


def control_groups(paths: Iterable[str]) -> dict[str, int]:
    """The numbers (inodes) of those that exist; none where there is no cgroup v2 at the root."""
    if not (CGROUP_ROOT / "cgroup.procs").exists():
        return {}
    found = {}
    for path in paths:
        try:
            found[path] = (CGROUP_ROOT / path).stat().st_ino
        except OSError:
            continue
    return found


def listener_users(host: str, port: int) -> frozenset[int]:
    """Who listens on a TCP port of ``host`` (an own address) or of any address, by number.

    Of the calling thread's network namespace.
    """
    return frozenset(
        one.uid for one in listening() if one.port == port and one.address in (host, *_ANY)
    )
