"""One gateway per run directory: a lock that the kernel drops when its holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.errors import GatewayError

LOCK_NAME = "lock"


class LockedError(GatewayError):
    """Another process holds the run directory; ``process`` is its number, 0 if unknown."""

    def __init__(self, path: Path, process: int) -> None:
        super().__init__(
            f"a gateway is running (process {process or 'unknown'} holds {path})",
            "ask it with `gateway status`; stop it with SIGTERM",
        )
        self.process = process


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold ``run_dir``, which is made if it is missing.

    Raises ``LockedError`` where another process holds it, and ``GatewayError`` where the
    directory cannot be used.
    """
    path = run_dir / LOCK_NAME
    descriptor = _open(path)
    try:
        try:
            # flock(2): released by the kernel when the holder dies, however it dies.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            raise LockedError(path, int(holder) if holder.isdigit() else 0) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise GatewayError(
            f"not allowed to use {path.parent}", "run this command as root"
        ) from error
    except OSError as error:
        raise GatewayError(
            f"cannot use {path.parent} as run directory: {error.strerror}",
            "give another --run-dir",
        ) from error
