"""When fetched sets are fetched: at their intervals, and sooner again where that failed."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Final

from gateway.config.schema import UrlRuleSet
from gateway.errors import GatewayError
from gateway.exchange import Connect
from gateway.policy.sets.formats import ListSource
from gateway.rulesets.fetch import Copy, Order, Received, fetch
from gateway.rulesets.store import RuleSetStore

#: After a failure (seconds); twice as long after each further one, up to the longest.
FIRST_RETRY_S: Final = 5.0
LONGEST_RETRY_S: Final = 3600.0

_HOUR: Final = 3600
_MEGABYTE: Final = 1_000_000


class Updates:
    """Keeps the copies of all fetched sets young. ``counters`` are totals since the start."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._not_before: dict[str, float] = {}

    def due(self, store: RuleSetStore) -> list[str]:
        """The sets to fetch now."""
        now = time.time()
        return [
            name
            for name, settings in fetched_sets(store).items()
            if now >= self._not_before.get(name, 0)
            and now >= Copy.beside(store.source(name).path).checked + settings.interval * _HOUR
        ]

    async def update(self, name: str, store: RuleSetStore, connect: Connect) -> bool:
        """Fetch a set that is due; whether it changed. Raises ``GatewayError``."""
        try:
            changed = await update(name, store, connect)
        except GatewayError:
            self.counters["rule_set_fetches_failed"] += 1
            wait = min(FIRST_RETRY_S * 2 ** self._failures[name], LONGEST_RETRY_S)
            self._failures[name] = min(self._failures[name] + 1, 10)
            self._not_before[name] = time.time() + wait
            raise
        self._failures.pop(name, None)
        self.counters["rule_set_fetches"] += 1
        return changed


def fetched_sets(store: RuleSetStore) -> dict[str, UrlRuleSet]:
    """The sets that are fetched, by name."""
    return {
        name: settings
        for name, settings in store.config.rule_sets.items()
        if isinstance(settings, UrlRuleSet)
    }


async def update(
    name: str,
    store: RuleSetStore,
    connect: Connect,
    received: Received = lambda _got, _whole: None,
) -> bool:
    """Fetch a set now; whether it changed. Raises ``GatewayError``; the copy is as it was then."""
    settings = fetched_sets(store)[name]
    source = store.source(name)
    order = Order(settings.url, source.path, settings.max_size * _MEGABYTE, settings.timeout)

    def verify(fresh: Path) -> None:
        """Compile it, which a later load will find done, or at least read it."""
        listed = ListSource(fresh, source.format, source.select, source.named)
        store.open(name, listed, fresh.stat().st_size)

    return await fetch(order, connect, verify, received)
