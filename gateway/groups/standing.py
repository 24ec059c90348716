"""Which members a group would take, in which order: the decision of each type, as values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Literal, NamedTuple

from gateway.flow import FlowFacts
from gateway.groups.health import UNKNOWN, Health

#: What flows are spread by.
By = Literal["source", "destination"]
#: The health of members, by name; those that are never probed have none.
Healths = Mapping[str, Health]


class Standing(NamedTuple):
    """How a group stands.

    ``usable`` members, the best first; ``others`` are down, and tried only where none of the
    usable ones would do. ``by``: what flows are spread over the usable ones by; empty where
    the first takes them all. ``interrupt``: flows by a member that is not taken any more end.
    """

    usable: tuple[str, ...]
    others: tuple[str, ...] = ()
    by: By | Literal[""] = ""
    interrupt: bool = False

    @property
    def now(self) -> tuple[str, ...]:
        """The members that flows take now."""
        if self.by and self.usable:
            return self.usable
        return (*self.usable, *self.others)[:1]


def select(members: Sequence[str], chosen: str) -> Standing:
    """The chosen member and no other; the first where that is none of them."""
    return Standing((chosen if chosen in members else members[0],))


def fallback(members: Sequence[str], healths: Healths) -> Standing:
    """The usable members in their order."""
    return Standing(*_parted(members, healths))


def load_balance(members: Sequence[str], healths: Healths, by: By) -> Standing:
    """All usable members, each for its part."""
    return Standing(*_parted(members, healths), by)


def url_test(
    members: Sequence[str], healths: Healths, current: str, tolerance_s: float
) -> Standing:
    """The fastest usable member; the ``current`` one, unless another is faster by more than that.

    Members of which no latency is known come behind those that have been measured.
    """
    usable, others = _parted(members, healths)
    latency = {name: healths.get(name, UNKNOWN).latency for name in usable}
    ranked = sorted(usable, key=lambda name: _rank(latency[name]))
    best = latency[ranked[0]] if ranked else None
    now = latency.get(current)
    if now is not None and best is not None and now <= best + tolerance_s:
        ranked.remove(current)
        ranked.insert(0, current)
    return Standing(tuple(ranked), others)


def _rank(latency: float | None) -> float:
    return float("inf") if latency is None else latency


def _parted(members: Sequence[str], healths: Healths) -> tuple[tuple[str, ...], tuple[str, ...]]:
    usable = tuple(name for name in members if healths.get(name, UNKNOWN).usable)
    return usable, tuple(name for name in members if name not in usable)


#: Gives what flows are spread by: of one flow, its source or its destination.
Key = Callable[[By], str]


def paths(standings: Mapping[str, Standing], name: str, key: Key) -> Iterator[tuple[str, ...]]:
    """The ways through a group, the best first: names of groups, and at the end an outbound.

    An outbound that is met with again is left out. ``name`` is the first step of each.
    """
    seen: set[str] = set()
    for path in _paths(standings, name, key):
        if path[-1] not in seen:
            seen.add(path[-1])
            yield path


def _paths(standings: Mapping[str, Standing], name: str, key: Key) -> Iterator[tuple[str, ...]]:
    standing = standings.get(name)
    if standing is None:
        yield (name,)
        return
    usable = standing.usable
    if standing.by:
        usable = by_weight(usable, key(standing.by))
    for member in (*usable, *standing.others):
        for path in _paths(standings, member, key):
            yield (name, *path)


def balanced_by(by: By, facts: FlowFacts) -> str:
    """What a TCP flow is spread by."""
    return facts.source.host if by == "source" else facts.name or facts.destination.host


def by_weight(members: Sequence[str], key: str) -> tuple[str, ...]:
    """The members as a key prefers them (rendezvous hashing, Thaler and Ravishankar 1998).

    A member that is gone leaves the order of the others as it was, so that only what it
    carried moves.
    """
    return tuple(sorted(members, key=lambda member: _weight(member, key), reverse=True))


def _weight(member: str, key: str) -> bytes:
    return blake2b(f"{member}\0{key}".encode(), digest_size=8).digest()
