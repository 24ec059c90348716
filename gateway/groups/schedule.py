"""When each member of a group is probed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from gateway.config.groups import groups_within
from gateway.config.schema import Config
from gateway.groups.health import Health
from gateway.groups.state import Order, Tried, orders

#: A member that is down is looked at this often at least (seconds).
DOWN_S: Final = 10.0
#: After a good probe of a member that was down, the next one (seconds).
RISING_S: Final = 1.0
#: However often flows fail by a member, its probes are so far apart (seconds).
APART_S: Final = 1.0


class Schedule:
    """Remembers when each was probed and used; ``now`` is any steady clock."""

    def __init__(self) -> None:
        self._next: dict[Tried, float] = {}
        self._ended: dict[Tried, float] = {}
        self._running: set[Tried] = set()
        self._used: dict[str, int] = {}
        self._active: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._asked_for: set[str] = set()

    def heard(
        self, config: Config, used: Mapping[str, int], failures: Mapping[str, int], now: float
    ) -> None:
        """Take note of the totals of flows by group, and of failures by outbound."""
        for group in self._more(self._used, used):
            for inner in groups_within(config, group):
                self._active[inner] = now
        self._asked_for.update(self._more(self._failures, failures))

    def due(self, config: Config, now: float) -> list[tuple[Tried, Order]]:
        """What is to be probed now; each is taken to be under way until ``done``."""
        found = [
            (tried, order)
            for tried, order in orders(config).items()
            if tried not in self._running and self._is_due(tried, order, now)
        ]
        self._running.update(tried for tried, _ in found)
        self._asked_for -= {tried.outbound for tried, _ in found}
        return found

    def done(self, tried: Tried, order: Order, health: Health, now: float, jitter: float) -> None:
        """It has been probed, and is ``health`` now; ``jitter`` is about 1."""
        self._running.discard(tried)
        self._ended[tried] = now
        wait = order.every * jitter
        if health.rises:
            wait = min(wait, RISING_S)
        elif not health.usable:
            wait = min(wait, DOWN_S)
        self._next[tried] = now + wait

    def forget(self, outbounds: Collection[str]) -> None:
        """They are others now: probe them as soon as they are used."""
        for tried in [each for each in self._ended if each.outbound in outbounds]:
            del self._ended[tried]
            self._next.pop(tried, None)

    def _is_due(self, tried: Tried, order: Order, now: float) -> bool:
        if tried.outbound in self._asked_for:
            return now >= self._ended.get(tried, now - APART_S) + APART_S
        lately = now - order.every
        used = any(self._active.get(group, lately) > lately for group in order.groups)
        return (order.always or used) and now >= self._next.get(tried, now)

    @staticmethod
    def _more(known: dict[str, int], told: Mapping[str, int]) -> list[str]:
        """The names of which there are more than before; a worker that died took its own along."""
        grown = [name for name, total in told.items() if total > known.get(name, 0)]
        known.update(told)
        return grown
