"""The short-lived process in which python-iptables runs: one address family, one job.

``python -m gateway.kernel.iptables_worker`` reads a ``Request`` on standard input and
writes a ``Reply`` to standard output. Its own process, because python-iptables keeps
tables and extensions in globals: a second family in the same process breaks (libxtables
refuses to register a target twice, and exits), a change of network namespace goes
unnoticed, and reading a parameter back redirects standard output for a moment.

All is done under the lock that iptables(8) takes.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pickle
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.errors import ApplyError, CapabilityError, GatewayError
from gateway.kernel.iptables_job import Reply, Request
from gateway.kernel.iptables_tables import Tables
from gateway.plan.addresses import Family
from gateway.plan.xt import TABLES, TableName

#: Others hold it as long as they compute, and who asks again and again is not always next.
_LOCK_WAIT_S = 30.0


def present_tables(family: Family) -> tuple[TableName, ...]:
    """The legacy tables that exist in this network namespace; looking does not create any."""
    names = "ip_tables_names" if family is Family.V4 else "ip6_tables_names"
    try:
        listed = Path("/proc/thread-self/net", names).read_text().split()
    except OSError:
        return ()
    return tuple(name for name in TABLES if name in listed)


@contextmanager
def _xtables_lock() -> Iterator[None]:
    """The lock of iptables(8), which python-iptables does not take."""
    path = os.environ.get("XTABLES_LOCKFILE", "/run/xtables.lock")
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while not _locked(descriptor):
            if time.monotonic() > deadline:
                raise ApplyError(
                    f"another program holds {path}",
                    hint=f"`fuser -v {path}` says which; try again when it is done",
                )
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def perform(request: Request) -> Reply:
    """Do the job. Raises ``GatewayError``."""
    if request.scratch:
        _leave_network_namespace()
    wanted = {table.name for table in request.tables}
    present = present_tables(request.family)
    with _xtables_lock():
        names = [name for name in TABLES if name in wanted or name in present]
        tables = Tables(request.family, names)
        if request.job == "read":
            return Reply(tables.read())
        before, changed = tables.apply(request.tables)
        return Reply(before, changed)


def _leave_network_namespace() -> None:
    # os.unshare() came with Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    clone_newnet = 0x4000_0000
    if libc.unshare(clone_newnet) != 0:
        raise CapabilityError(
            f"no network namespace to try iptables in: {os.strerror(ctypes.get_errno())}",
            hint="run as root (CAP_SYS_ADMIN)",
        )


def main() -> None:
    """One request in, one reply out."""
    try:
        reply = perform(pickle.load(sys.stdin.buffer))  # noqa: S301 - our own process
    except GatewayError as error:
        reply = Reply(error=str(error), hint=error.hint)
    sys.stdout.buffer.write(pickle.dumps(reply))


if __name__ == "__main__":
    main()
