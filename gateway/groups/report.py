"""Groups as people and programs are told of them: who is taken, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gateway.config.groups import groups_of
from gateway.config.outbounds import Group, LoadBalanceGroup, ProbingGroup, SelectGroup
from gateway.config.schema import Config
from gateway.groups.health import Health, Result
from gateway.groups.standing import Standing
from gateway.groups.state import Observed, health_of, standings


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """One member. Shown as JSON: do not rename fields.

    ``state`` is ``unknown`` where it is not probed, or was not yet; ``since`` is Unix time in
    seconds; ``failure`` says why the last bad probe was one. ``taken``: flows go by it now.
    ``history``: the last probes, the newest at the end.
    """

    name: str
    state: Literal["up", "down", "unknown"]
    taken: bool
    since: float | None
    latency_ms: float | None
    failure: str
    history: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """One group. ``takes``: the members that flows go by now; ``reason`` says why those."""

    name: str
    type: str
    takes: tuple[str, ...]
    reason: str
    members: tuple[MemberRecord, ...]


def report(config: Config, observed: Observed, now: float) -> tuple[GroupRecord, ...]:
    """Every group, in the order of the file. ``now`` is Unix time in seconds."""
    stand = standings(config, observed)
    return tuple(
        _record(name, group, observed, stand, now) for name, group in groups_of(config).items()
    )


def _record(
    name: str, group: Group, observed: Observed, stand: dict[str, Standing], now: float
) -> GroupRecord:
    takes = stand[name].now
    healths = {
        member: health_of(observed, member, group.probe.url, stand)
        if isinstance(group, ProbingGroup)
        else Health()
        for member in group.members
    }
    members = tuple(_member(each, health, each in takes) for each, health in healths.items())
    reason = "; ".join(_reasons(name, group, observed, stand[name], healths, now))
    return GroupRecord(name, group.type, takes, reason, members)


def _member(name: str, health: Health, taken: bool) -> MemberRecord:
    latency = health.latency
    return MemberRecord(
        name,
        "unknown" if health.up is None else "up" if health.up else "down",
        taken,
        health.since if health.results else None,
        None if latency is None else round(latency * 1000, 1),
        health.failure,
        health.results,
    )


def _reasons(
    name: str,
    group: Group,
    observed: Observed,
    stand: Standing,
    healths: dict[str, Health],
    now: float,
) -> Iterator[str]:
    if isinstance(group, SelectGroup):
        chosen = observed.chosen.get(name) in group.members
        yield "chosen by hand" if chosen else "the first: none has been chosen"
        return
    if not stand.usable:
        yield "all are down, and tried in their order"
    elif isinstance(group, LoadBalanceGroup):
        yield f"{len(stand.usable)} of {len(group.members)}, by {group.by}"
    else:
        taken = healths[stand.usable[0]]
        latency = "not measured" if taken.latency is None else f"{taken.latency * 1000:.0f} ms"
        why = "the first that is well" if group.type == "fallback" else "the fastest"
        yield f"{why}: {latency}"
    for member in stand.others:
        health = healths[member]
        yield f"{member} is down for {_span(now - health.since)}: {health.failure}"


def _span(seconds: float) -> str:
    """A duration in its largest unit, cut to a whole number of it."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"
