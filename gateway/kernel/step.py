"""Changes to the kernel with their inverses: how a failure midway is taken back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.errors import GatewayError


@dataclass(frozen=True, slots=True)
class Step:
    """A change that was made: what it did, in a few words, and its inverse."""

    what: str
    undo: Callable[[], object]


class Steps:
    """The changes made so far, in order."""

    def __init__(self) -> None:
        self._made: list[Step] = []

    @property
    def descriptions(self) -> tuple[str, ...]:
        """What was done, in order."""
        return tuple(step.what for step in self._made)

    def record(self, step: Step | None) -> None:
        """Remember a change; None means that nothing had to be changed."""
        if step is not None:
            self._made.append(step)

    def revert(self) -> list[str]:
        """Undo everything, last change first; returns what could not be undone, and why."""
        failures = []
        while self._made:
            step = self._made.pop()
            try:
                step.undo()
            except (GatewayError, OSError) as error:
                failures.append(f"{step.what}: {error}")
        return failures
