"""Datagrams that wait for their flow's first words: a QUIC client's hello may be in several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from gateway.flow import FlowFacts
from gateway.kernel.datagrams import Batch
from gateway.sniff.datagrams import Datagrams
from gateway.sniff.sighting import MORE, Sighting

if TYPE_CHECKING:
    from gateway.inbound.udp import Upgoing

#: What is kept of one flow, so that nothing is lost: more than QUIC's hellos need.
KEPT_BYTES: Final = 24 << 10
#: Flows that may wait at a time; others are decided without a name.
MOST_WAITING: Final = 512


class Listener(Protocol):
    """Who decides."""

    def heard(self, flow: UnheardFlow, seen: Sighting) -> None:
        """The client has shown all that it will."""

    def dropped(self, why: str) -> None:
        """A datagram was left out."""


class UnheardFlow:
    """A client's datagrams to one far end, until it is decided where they go.

    ``ends`` is what the listener knows them by, ``first`` the first of them. ``onward`` is set
    once they have a way.
    """

    __slots__ = (
        "_bytes", "_listener", "_looking", "_seen", "ends", "facts", "first", "kept", "onward",
    )  # fmt: skip

    def __init__(self, listener: Listener, ends: bytes, facts: FlowFacts) -> None:
        self._listener = listener
        self._looking = Datagrams()
        self._seen = MORE
        self._bytes = 0
        self.ends = ends
        self.facts = facts
        self.first = b""
        self.kept: list[bytes] = []
        self.onward: Upgoing | None = None

    def sighting(self) -> Sighting:
        """What the client has shown by now."""
        return self._seen

    def up(self, batch: Batch, first: int, last: int) -> None:
        """Look at these datagrams, and keep them, or send them onward where they said enough."""
        datagrams = [bytes(each) for slot in range(first, last) for each in batch.datagrams(slot)]
        if not self.first:
            self.first = datagrams[0]
        for datagram in datagrams:
            if not self._seen.complete:
                self._seen = self._looking.feed(datagram)
        if self._seen.complete:
            self._listener.heard(self, self._seen)
            if self.onward is not None:
                self.onward.up(batch, first, last)
            return
        for datagram in datagrams:
            self._bytes += len(datagram)
            if self._bytes > KEPT_BYTES:
                self._bytes -= len(datagram)
                self._listener.dropped("not-ready")
            else:
                self.kept.append(datagram)
