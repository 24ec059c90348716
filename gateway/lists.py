"""The lists of a running gateway's rule sets: fetched when they are due, and read when they change.

``RuleSetStore`` blocks, so each call of it waits in a thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gateway import logs
from gateway.errors import GatewayError
from gateway.exchange import Connect
from gateway.rulesets.store import RuleSetStore
from gateway.rulesets.updates import Updates, fetched_sets

log = logging.getLogger(__name__)


class ListKeeper:
    """What is known of the lists beside their store, which a reload replaces."""

    def __init__(self) -> None:
        self._updates = Updates()
        self._waiting: set[str] = set()

    async def reread(self, store: RuleSetStore) -> bool:
        """Read lists that have changed on disk; whether there are some that are not in force.

        That may take long, and keeps nothing waiting.
        """
        self._waiting |= set(await asyncio.to_thread(store.changed))
        if not self._waiting:
            return False
        await asyncio.to_thread(store.refresh)
        await asyncio.to_thread(store.forget_old)
        return True

    def in_force(self) -> None:
        """What was read last is: until that is said, ``reread`` tells of it again."""
        log.info("rule sets changed", extra=logs.fields(sets=",".join(sorted(self._waiting))))
        self._waiting.clear()

    async def fetch(self, store: RuleSetStore, connect: Callable[[str], Connect]) -> None:
        """Fetch the lists that are due; one that cannot be had is a warning.

        ``connect``: what opens connections by an outbound.
        """

        async def fetch(name: str) -> None:
            try:
                via = fetched_sets(store)[name].via
                changed = await self._updates.update(name, store, connect(via))
            except GatewayError as error:
                hint = logs.fields(hint=error.hint)
                log.warning("rule set %s was not fetched: %s", name, error, extra=hint)
            else:
                log.info("rule set %s %s", name, "fetched" if changed else "has not changed")

        await asyncio.gather(*map(fetch, await asyncio.to_thread(self._updates.due, store)))

    def counters(self, store: RuleSetStore) -> dict[str, int]:
        """Totals since the start, and how many sets are empty now, if any."""
        empty = sum(map(store.is_empty, fetched_sets(store)))
        return {**self._updates.counters, **({"rule_sets_empty": empty} if empty else {})}
