"""Breakers: see loops that run through a proxy whose own traffic we divert to it.

Such a proxy (in the LAN by an address that nobody wrote down, or a program on this machine)
connects to where our flow goes, that connection is diverted to us, we ask the proxy again, and
so on until there are no descriptors left. No address gives it away, but its shape does: one
host opens flow after flow to one destination, each once the last is through, and none of
them gets an answer. Of datagrams, a loop carries the same one round and round, each time from
another port. Clients may look like this, too: it is a suspicion, and ``gateway/trial.py`` tells.
"""

from __future__ import annotations

from collections.abc import Container, Hashable
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from gateway.flow import CloseReason, Endpoint, FlowFacts
from gateway.flow import Protocol as Transport

#: Flows of one source and destination that are looked at together: a loop has no more.
WINDOW: Final = 32
#: So many of them must live on without an answer.
SHARE: Final = 24
#: Pairs of source and destination that are kept in mind.
PAIRS: Final = 512
#: What goes round fills a window within this (seconds), through almost every proxy.
WITHIN_S: Final = 10.0

DNS_PORT: Final = 53
#: A query's number (RFC 1035 section 4.1.1): a name server that forwards gives it a new one.
_DNS_NUMBER: Final = 2


class Accepted(Protocol):
    """What a breaker sees of a flow."""

    id: int
    facts: FlowFacts
    started: float

    @property
    def reason(self) -> CloseReason | None:
        """Why it has closed; None while it lives."""

    @property
    def bytes_down(self) -> int:
        """What the client was given."""


_Flow = TypeVar("_Flow", bound=Accepted)


class _Windows(Generic[_Flow]):
    """Flows that look alike, until there are enough of them to judge."""

    def __init__(self) -> None:
        self._windows: dict[Hashable, list[_Flow]] = {}

    def unanswered(self, key: Hashable, flow: _Flow) -> list[_Flow]:
        """Those of a window that this flow has made full who wait for an answer; else nobody."""
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= PAIRS:
                self._windows.clear()  # a loop fills its window again before it does harm
            window = self._windows[key] = []
        window.append(flow)
        if len(window) < WINDOW:
            return []
        del self._windows[key]
        return [one for one in window if one.reason is None and one.bytes_down == 0]


class Ends(NamedTuple):
    """What TCP flows of a loop have in common."""

    source: str
    destination: Endpoint


def ends(facts: FlowFacts) -> Ends:
    """Those of a flow, without the client's port."""
    return Ends(facts.source.host, facts.destination)


class StreamBreaker(Generic[_Flow]):
    """Watches the TCP flows that one data plane opens; costs a dictionary entry each.

    ``relaying``: numbers of the flows whose second leg is up. In a loop each waits for the one
    before it; clients open theirs side by side.
    """

    def __init__(self, relaying: Container[int]) -> None:
        self._relaying = relaying
        self._windows: _Windows[_Flow] = _Windows()

    def suspects(self, alike: Ends, flow: _Flow) -> list[_Flow]:
        """The flows of what may be a loop, whose newest this is; mostly none."""
        unanswered = self._windows.unanswered(alike, flow)
        through = sum(one.id in self._relaying for one in unanswered)
        return unanswered if through >= SHARE else []


class Likeness(NamedTuple):
    """What UDP flows of a loop have in common: the ends, without ports, and the first datagram."""

    source: str
    destination: Endpoint
    datagram: int


def likeness(facts: FlowFacts, first: bytes) -> Likeness:
    """That of a flow with this first datagram."""
    if facts.destination.port == DNS_PORT:
        first = first[_DNS_NUMBER:].lower()  # nor is its case sure to stay (dns0x20)
    return Likeness(facts.source.host, facts.destination, hash(first))


class DatagramBreaker(Generic[_Flow]):
    """The same for UDP flows, which it can only suspect."""

    def __init__(self) -> None:
        self._windows: _Windows[_Flow] = _Windows()

    def suspects(self, alike: Likeness, flow: _Flow) -> list[_Flow]:
        """The flows of what may be a loop, whose newest this is; mostly none."""
        unanswered = self._windows.unanswered(alike, flow)
        if len(unanswered) < SHARE or flow.started - unanswered[0].started > WITHIN_S:
            return []
        return unanswered


def advice(flow: Accepted, *, own: bool) -> str:
    """What was seen, and the rule that is missing. ``own``: the source is this machine."""
    host, destination = ends(flow.facts)
    seen = f"{host} opens flow after flow to {destination}, and none is answered"
    if flow.facts.protocol is Transport.UDP:
        seen = f"{host} sends {destination} the same datagram again and again, never answered"
    if own:
        return (
            f"{seen}: the proxy program on this machine is diverted to itself; say in `uid:` or"
            " `cgroup:` of its outbound what it runs as"
        )
    return (
        f"{seen}: the proxy there is diverted to itself; put {{source: {host}, to: direct}} before"
        " the rule"
    )
