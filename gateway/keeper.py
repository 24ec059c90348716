"""Looks after the groups of a running gateway: probes members, and tells the data plane."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from gateway import logs
from gateway.config.findings import did_you_mean
from gateway.config.groups import groups_of
from gateway.config.outbounds import SelectGroup
from gateway.config.schema import Config
from gateway.errors import ChoiceError, GatewayError
from gateway.exchange import Connect
from gateway.groups.health import UNKNOWN, Health, Result
from gateway.groups.report import GroupRecord, report
from gateway.groups.schedule import Schedule
from gateway.groups.standing import Standing
from gateway.groups.state import Observed, Order, Tried, standings
from gateway.plane import Plane
from gateway.probing import AT_ONCE, probe

log = logging.getLogger(__name__)

#: How often it is looked whether a probe is due, and what flows have shown (seconds).
LOOK_S: Final = 0.5
#: Probes do not go out at one time: their interval varies by this part of it.
JITTER: Final = 0.1


class GroupKeeper:
    """What is known of the groups; it outlives reloads."""

    def __init__(self, choices: Path) -> None:
        """``choices``: the file in which the owner's are kept."""
        self._choices = choices
        self._observed = Observed(chosen=read_choices(choices))
        self._schedule = Schedule()
        self._told: Mapping[str, Standing] = {}
        self._config: Config | None = None
        self._turns = asyncio.Semaphore(AT_ONCE)
        self.counters: Counter[str] = Counter()

    def standings(self, config: Config) -> dict[str, Standing]:
        """How the groups of a configuration stand."""
        return standings(config, self._observed)

    def report(self, config: Config) -> tuple[GroupRecord, ...]:
        """What is known of each group."""
        return report(config, self._observed, time.time())

    async def run(
        self, plane: Plane, config: Callable[[], Config], connect: Callable[[str], Connect]
    ) -> None:
        """Keep it true; runs until it is cancelled.

        ``connect``: what opens connections by an outbound.
        """
        self._config = config()
        self._told = self.standings(config())
        async with asyncio.TaskGroup() as tasks:
            while True:
                await asyncio.sleep(LOOK_S)
                if not groups_of(config()):
                    continue
                told = await plane.group_report()
                now = time.monotonic()
                self._schedule.heard(config(), told.used, told.failures, now)
                for tried, order in self._schedule.due(config(), now):
                    tasks.create_task(
                        self._probe(plane, config, tried, order, connect(tried.outbound)),
                        name=f"probe of {tried.outbound}",
                    )

    async def tell(self, plane: Plane, config: Config, well: tuple[str, ...] = ()) -> None:
        """Have the data plane know how the groups stand.

        ``well``: who has just been probed, and is.
        """
        self._forget_changed(config)
        stand = self.standings(config)
        if not stand:
            return
        for name, standing in stand.items():
            known = self._told.get(name)
            if known is not None and known.now != standing.now:
                self.counters["group_switches"] += 1
                log.warning(
                    "a group takes another member",
                    extra=logs.fields(
                        group=name, takes=",".join(standing.now), before=",".join(known.now)
                    ),
                )
        self._told = stand
        taken = {name: standing.now[0] for name, standing in stand.items()}
        self._observed = replace(self._observed, taken=taken)
        await plane.stand(stand, well)

    def _forget_changed(self, config: Config) -> None:
        """What was seen of an outbound says nothing of what it is after a reload."""
        before, self._config = self._config, config
        if before is None or before is config:
            return
        changed = {
            name for name, its in before.outbounds.items() if config.outbounds.get(name) != its
        }
        healths = self._observed.healths.items()
        kept = {tried: health for tried, health in healths if tried.outbound not in changed}
        self._observed = replace(self._observed, healths=kept)
        self._schedule.forget(changed)

    async def choose(self, plane: Plane, config: Config, group: str, member: str) -> GroupRecord:
        """Have a ``select`` group take a member, now and after a restart.

        Raises ``ChoiceError`` where there is no such choice, ``GatewayError`` where it cannot be
        kept; nothing has changed then.
        """
        groups = groups_of(config)
        its = groups.get(group)
        if its is None:
            raise ChoiceError(f"there is no group {group}", did_you_mean(group, groups, "groups"))
        if not isinstance(its, SelectGroup):
            raise ChoiceError(
                f"{group} chooses by itself: it is of type {its.type}",
                "only groups of type select are chosen by hand",
            )
        if member not in its.members:
            cure = did_you_mean(member, its.members, f"members of {group}")
            raise ChoiceError(f"{member} is no member of {group}", cure)
        chosen = {**self._observed.chosen, group: member}
        await asyncio.to_thread(write_choices, self._choices, chosen)
        self._observed = replace(self._observed, chosen=chosen)
        await self.tell(plane, config)
        return next(each for each in self.report(config) if each.name == group)

    async def _probe(
        self,
        plane: Plane,
        config: Callable[[], Config],
        tried: Tried,
        order: Order,
        connect: Connect,
    ) -> None:
        async with self._turns:
            started = time.monotonic()
            try:
                took = await probe(tried.url, order.timeout, connect)
                result = Result(time.time(), took)
            except GatewayError as error:
                result = Result(time.time(), time.monotonic() - started, str(error))
        self.counters["probes" if result.ok else "probes_failed"] += 1
        before = self._observed.healths.get(tried, UNKNOWN)
        health = before.after(result)
        self._observed = replace(self._observed, healths={**self._observed.healths, tried: health})
        _note(tried, before, health)
        jitter = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - not a secret
        self._schedule.done(tried, order, health, time.monotonic(), jitter)
        await self.tell(plane, config(), (tried.outbound,) if result.ok else ())


def _note(tried: Tried, before: Health, health: Health) -> None:
    if health.up is False and before.up is not False:
        log.warning(
            "a member of a group is down",
            extra=logs.fields(outbound=tried.outbound, reason=health.failure),
        )
    elif health.up and before.up is False:
        log.warning("a member of a group is up again", extra=logs.fields(outbound=tried.outbound))


def choices_of(config: Config, path: Path) -> Path:
    """Where the owner's choices are kept; ``path`` is the configuration file."""
    return path.parent / config.state_dir / "groups.json"


def read_choices(path: Path) -> dict[str, str]:
    """The member of each group that was chosen; none where there is no such file.

    One that cannot be read is left alone, with a warning: the first members are taken.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {str(group): str(member) for group, member in kept["chosen"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        log.warning(
            "the members chosen by hand are not known",
            extra=logs.fields(file=path, reason=error, hint="choose again: gateway select"),
        )
        return {}


def write_choices(path: Path, chosen: Mapping[str, str]) -> None:
    """Keep them. Raises ``GatewayError``."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fresh.write_text(json.dumps({"chosen": chosen}, indent=2) + "\n", encoding="utf-8")
            fresh.replace(path)
        finally:
            with suppress(OSError):
                fresh.unlink()
    except OSError as error:
        raise GatewayError(
            f"the choice cannot be kept: {error}", "make room, or set `state_dir`"
        ) from error
