"""What one process knows of its groups: how they stand, and whom flows have failed by lately."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import islice, pairwise
from typing import Final, NamedTuple

from gateway.flow import Endpoint, FlowFacts
from gateway.groups.standing import By, Key, Standing, balanced_by, paths
from gateway.kernel.reactor import Reactor
from gateway.outbound.base import Outbound

#: Members that one flow tries at most.
TRIED_AT_MOST: Final = 3
#: A member that has not connected a flow by then (seconds) has the next one tried beside it; the
#: first SYN may be lost, and the destination may be slow.
PATIENCE_S: Final = 2.5
#: Clients or destinations of groups that are kept in mind.
KNOWN_AT_MOST: Final = 4096
#: A member by which a flow has failed comes behind the others for so long (seconds), unless the
#: probe that this asks for has spoken before.
SUSPECT_S: Final = 10.0


class Candidate(NamedTuple):
    """A member that a flow may go by: as people read it (``eu>home``), and what opens the leg."""

    member: str
    outbound: Outbound


class GroupReport(NamedTuple):
    """Totals since the start: flows of each group, and of those that a member let down."""

    used: Mapping[str, int]
    failures: Mapping[str, int]


class Board:
    """Shared by all groups of a process."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.counters: Counter[str] = Counter()
        self.used: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self.patience_s = PATIENCE_S
        self._suspects: dict[str, float] = {}
        # Until the groups stand otherwise: by what each spreads flows, if at all, and whom the
        # flows take that are alike in that.
        self._spread_by: dict[str, tuple[By, ...]] = {}
        self._known: dict[tuple[str, ...], tuple[Candidate, ...]] = {}
        self.standings: Mapping[str, Standing] = {}
        self._outbounds: Mapping[str, Outbound] = {}

    def adopt(
        self,
        standings: Mapping[str, Standing],
        outbounds: Mapping[str, Outbound],
        connect_s: float,
    ) -> None:
        """Choose among these; ``outbounds`` are those that are no groups.

        ``connect_s``: how long a flow may take to be connected, by whomever.
        """
        self._outbounds = outbounds
        self.patience_s = min(PATIENCE_S, connect_s / (TRIED_AT_MOST + 1))
        self.standings = standings
        self._forget()

    def stand(self, standings: Mapping[str, Standing], well: Collection[str]) -> None:
        """How the groups stand from now on; outbounds that are ``well`` are not suspected.

        What is of another configuration than the one that was adopted is left aside: it may
        have been said while a reload was under way.
        """
        known = self.standings.keys() | self._outbounds.keys()
        ours = {
            name: standing
            for name, standing in standings.items()
            if name in self.standings and known >= {*standing.usable, *standing.others}
        }
        self.standings = {**self.standings, **ours}
        self._forget()
        for name in well:
            self._suspects.pop(name, None)

    def interrupts(self, before: Mapping[str, Standing]) -> bool:
        """Whether some group that ends flows when it moves has moved since."""
        return any(
            standing.interrupt and name in before and before[name].now != standing.now
            for name, standing in self.standings.items()
        )

    def interrupted(self, before: Mapping[str, Standing], group: str, member: str) -> bool:
        """Whether a flow by a member is to end, because a group has taken another one since.

        ``member`` as people read it, below the ``group`` that a rule leads to.
        """
        path = [group, *member.split(">")]
        for name, its in pairwise(path):
            old, new = before.get(name), self.standings.get(name)
            if old and new and new.interrupt and old.now != new.now and its not in new.now:
                return True
        return False

    def is_down(self, group: str, member: str) -> bool:
        """Whether a member below a group (as ``interrupted`` has them) is, and another is not."""
        for name, its in pairwise([group, *member.split(">")]):
            standing = self.standings.get(name)
            if standing and standing.usable and its in standing.others:
                return True
        return False

    def report(self) -> GroupReport:
        """What flows have shown so far."""
        return GroupReport(dict(self.used), dict(self._failures))

    def suspect(self, outbound: Outbound) -> None:
        """A flow could not be carried that way, and it is not the destination's doing."""
        self._failures[outbound.name] += 1
        self._suspects[outbound.name] = time.monotonic() + SUSPECT_S

    def for_flow(self, group: str, facts: FlowFacts) -> tuple[Candidate, ...]:
        """Whom a flow tries, in this order."""
        found = self._candidates(group, lambda by: balanced_by(by, facts))
        return tuple(islice(found, TRIED_AT_MOST))

    def for_datagrams(self, group: str, client: Endpoint, tried: Collection[str] = ()) -> Candidate:
        """Who carries the datagrams of a client's socket, wherever they go.

        The first that can, of members that have not been ``tried``; the first of all where none
        can.
        """
        keys = {"source": client.host, "destination": str(client)}
        candidates = tuple(self._candidates(group, keys.__getitem__))
        able = (
            each
            for each in candidates
            if each.outbound.carries_udp is not False and each.member not in tried
        )
        return next(able, candidates[0])

    def for_echo(self, group: str, host: str) -> Candidate:
        """Who carries echo requests to an address."""
        return next(self._candidates(group, lambda _: host))

    def ends(self, group: str) -> Iterator[Outbound]:
        """Every outbound that flows of the group may leave by, as the groups stand now."""
        return (each.outbound for each in self._candidates(group, lambda _: ""))

    def _candidates(self, group: str, key: Key) -> Iterator[Candidate]:
        by = self._spread_by.get(group)
        found = None if by is None else self._known.get((group, *map(key, by)))
        if found is None:
            found = self._look_up(group, key)
        if not self._suspects:
            return iter(found)
        now = time.monotonic()
        # Sorting keeps the order of those that are alike.
        return iter(sorted(found, key=lambda each: self._is_suspect(each.outbound.name, now)))

    def _look_up(self, group: str, key: Key) -> tuple[Candidate, ...]:
        asked: dict[By, str] = {}

        def noted(by: By) -> str:
            return asked.setdefault(by, key(by))

        found = tuple(
            Candidate(">".join(path[1:]), self._outbounds[path[-1]])
            for path in paths(self.standings, group, noted)
        )
        if len(self._known) >= KNOWN_AT_MOST:
            self._known.clear()
        self._spread_by[group] = by = tuple(sorted(asked))
        self._known[(group, *(asked[each] for each in by))] = found
        return found

    def _forget(self) -> None:
        self._spread_by.clear()
        self._known.clear()

    def _is_suspect(self, name: str, now: float) -> bool:
        until = self._suspects.get(name)
        if until is not None and until <= now:
            del self._suspects[name]
        return until is not None and until > now
