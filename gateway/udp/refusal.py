"""What stands in for a conversation that is not to be."""

from __future__ import annotations

from typing import Protocol

from gateway.flow import FlowFacts
from gateway.kernel.datagrams import Batch


class Refuser(Protocol):
    """Who tells clients that nobody is there."""

    def refused(self, facts: FlowFacts) -> None:
        """Tell this one."""


class Refusal:
    """Answers every datagram of a conversation that is not to be."""

    __slots__ = ("_facts", "_refuser", "until")

    def __init__(self, refuser: Refuser, facts: FlowFacts, until: float) -> None:
        self._refuser = refuser
        self._facts = facts
        self.until = until

    def up(self, batch: Batch, first: int, last: int) -> None:
        """Say that nobody is there."""
        del batch, first, last
        self._refuser.refused(self._facts)
