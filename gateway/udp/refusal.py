"""What stands in for a conversation that is not to be."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Final, Protocol

from gateway.flow import FlowFacts
from gateway.inbound.udp import Upgoing
from gateway.kernel.datagrams import Batch

#: How long a refusal is remembered: until then every datagram is answered without a look at
#: the rules (seconds).
REFUSAL_S: Final = 1.0


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


class Refusals:
    """Those of the last moment, among what is ``known`` by ``Batch.ends``."""

    def __init__(self, refuser: Refuser, known: dict[bytes, Upgoing]) -> None:
        self._refuser = refuser
        self._known = known
        self._until: deque[tuple[float, bytes]] = deque()

    def add(self, facts: FlowFacts, keys: Iterable[bytes]) -> None:
        """Answer these from now on."""
        until = time.monotonic() + REFUSAL_S
        refusal = Refusal(self._refuser, facts, until)
        for ends in keys:
            self._known[ends] = refusal
            self._until.append((until, ends))

    def expire(self, now: float) -> None:
        """Forget what is over. ``now``: ``time.monotonic``."""
        while self._until and self._until[0][0] <= now:
            _, ends = self._until.popleft()
            known = self._known.get(ends)
            if isinstance(known, Refusal) and known.until <= now:
                del self._known[ends]
