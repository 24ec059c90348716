"""The breaker: ends a loop that runs through a proxy whose own traffic we divert to it.

Such a proxy (in the LAN by an address that nobody wrote down, or a program on this machine)
connects to where our flow goes, that connection is diverted to us, we ask the proxy again, and
so on until there are no descriptors left. No address gives it away, but its shape does: one
host opens flow after flow to one destination, each once the last is through, and none of
them gets an answer. To reset the newest is enough: the proxy then ends the one before it,
and so on down to the first. Of a client that merely looks like this, one flow is lost.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final, Protocol

from gateway.flow import CloseReason, Endpoint, FlowFacts

#: Flows of one source and destination that are looked at together: a loop has no more.
WINDOW: Final = 32
#: So many of them must live on without an answer.
SHARE: Final = 24
#: Pairs of source and destination that are kept in mind.
PAIRS: Final = 512
#: In a loop each flow waits for the one before it; clients open theirs side by side.
AT_ONCE: Final = 4

_Pair = tuple[str, Endpoint]


class Accepted(Protocol):
    """What the breaker sees of a flow."""

    id: int
    facts: FlowFacts

    @property
    def reason(self) -> CloseReason | None:
        """Why it has closed; None while it lives."""

    @property
    def bytes_down(self) -> int:
        """What the client was given."""


class Breaker:
    """Watches the flows that one data plane accepts; costs a dictionary entry each."""

    def __init__(self) -> None:
        self._windows: dict[_Pair, list[Accepted]] = {}

    def trips(self, flow: Accepted, relaying: Container[int]) -> bool:
        """Whether this newest flow is the head of a loop, and is to be reset.

        ``relaying``: numbers of the flows whose second leg is up.
        """
        pair = _pair(flow)
        window = self._windows.get(pair)
        if window is None:
            if len(self._windows) >= PAIRS:
                self._windows.clear()  # a loop fills its window again before it does harm
            window = self._windows[pair] = []
        window.append(flow)
        if len(window) < WINDOW:
            return False
        del self._windows[pair]
        unanswered = [one for one in window if one.reason is None and one.bytes_down == 0]
        opening = sum(one.id not in relaying for one in unanswered)
        return len(unanswered) >= SHARE and opening <= AT_ONCE


def advice(flow: Accepted, *, own: bool) -> str:
    """What was seen, and the rule that is missing. ``own``: the source is this machine."""
    host, destination = _pair(flow)
    seen = f"{host} opens flow after flow to {destination}, and none is answered"
    if own:
        return (
            f"{seen}: the proxy program on this machine is diverted to itself; say in `uid:` or"
            " `cgroup:` of its outbound what it runs as"
        )
    return (
        f"{seen}: the proxy there is diverted to itself; put {{source: {host}, to: direct}} before"
        " the rule"
    )


def _pair(flow: Accepted) -> _Pair:
    return flow.facts.source.host, flow.facts.destination
