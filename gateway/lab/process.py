"""Processes that the lab starts: each in a session of its own, its output in a file."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gateway.errors import GatewayError

POLL_S = 0.02
START_TIMEOUT_S = 20.0
#: For what a process has to load and do before it is ready; one that ends is not waited for.
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0


class LabError(GatewayError):
    """The lab could not be built, or something in it did not come up."""


def wait_until(
    condition: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S
) -> None:
    """Poll until ``condition`` holds. Raises ``LabError`` naming ``what`` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    last = False
    while not condition():
        if last:
            raise LabError(f"waited {timeout_s:g} s in vain: {what}")
        time.sleep(POLL_S)
        # We may have stood still ourselves: what was waited for may be there by now.
        last = time.monotonic() > deadline


def happens(condition: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> bool:
    """Whether ``condition`` comes to hold within ``timeout_s``."""
    try:
        wait_until(condition, "it", timeout_s)
    except LabError:
        return False
    return True


class Process:
    """A running process; standard output and error are appended to ``log_path``."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_path: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log_path = log_path
        with log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id, which is also that of its session and process group."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._popen.poll() is None

    @property
    def log(self) -> list[str]:
        """The lines it has written so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()

    def wait_until(
        self, condition: Callable[[], bool], what: str, timeout_s: float = READY_TIMEOUT_S
    ) -> None:
        """As ``wait_until``, but raises at once when the process ends, with its last lines."""
        try:
            wait_until(lambda: not self.alive or condition(), f"{self.name}: {what}", timeout_s)
        except LabError as error:
            raise LabError(f"{error}\n{self._tail()}") from None
        if not self.alive:
            raise LabError(f"{self.name} ended ({self._popen.returncode}): {what}\n{self._tail()}")

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Its exit status once it has ended. Raises ``LabError`` when it does not end."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name} did not end in {timeout_s:g} s\n{self._tail()}") from None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself; one that has ended gets none."""
        self._popen.send_signal(number)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM, and its exit status. Raises ``LabError`` when it does not end."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> int:
        """SIGKILL to the process and the children it has; its exit status."""
        if self.alive:
            os.killpg(self.pid, signal.SIGKILL)
        return self.wait()

    def _tail(self) -> str:
        return "\n".join(f"    {line}" for line in self.log[-15:])
