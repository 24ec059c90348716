"""All groups of a configuration: whom to probe, and how the groups stand by what was observed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.config.groups import ends_of, groups_of
from gateway.config.outbounds import (
    FallbackGroup,
    Group,
    LoadBalanceGroup,
    ProbingGroup,
    RejectOutbound,
    SelectGroup,
)
from gateway.config.schema import Config
from gateway.groups import standing
from gateway.groups.health import UNKNOWN, Health
from gateway.groups.standing import Standing


class Tried(NamedTuple):
    """What is probed: an outbound that is no group, by a URL."""

    outbound: str
    url: str


@dataclass(frozen=True, slots=True)
class Order:
    """How often to probe it, and how long to wait (seconds).

    ``groups`` want it; ``always``: also while no flow uses any of them.
    """

    every: float
    timeout: float
    groups: frozenset[str]
    always: bool


@dataclass(frozen=True, slots=True)
class Observed:
    """What is known beside the configuration.

    ``chosen``: by hand, the member of each ``select`` group; ``taken``: the member of each
    other group that was the best when last looked at.
    """

    chosen: Mapping[str, str] = field(default_factory=dict)
    taken: Mapping[str, str] = field(default_factory=dict)
    healths: Mapping[Tried, Health] = field(default_factory=dict)


def orders(config: Config) -> dict[Tried, Order]:
    """What is to be probed. What refuses is not: it never fails."""
    found: dict[Tried, Order] = {}
    for name, group in groups_of(config).items():
        if not isinstance(group, ProbingGroup):
            continue
        probe = group.probe
        for end in ends_of(config, name):
            if isinstance(config.outbound(end), RejectOutbound):
                continue
            tried = Tried(end, probe.url)
            known = found.get(tried)
            if known is None:
                order = Order(probe.every, probe.timeout, frozenset({name}), not probe.lazy)
            else:
                order = Order(
                    min(known.every, probe.every),
                    max(known.timeout, probe.timeout),
                    known.groups | {name},
                    known.always or not probe.lazy,
                )
            found[tried] = order
    return found


def standings(config: Config, observed: Observed) -> dict[str, Standing]:
    """How each group stands."""
    made: dict[str, Standing] = {}
    for name in groups_of(config):
        _stand(config, observed, name, made)
    return made


def _stand(config: Config, observed: Observed, name: str, made: dict[str, Standing]) -> None:
    groups = groups_of(config)
    if name in made or name not in groups:
        return
    group = groups[name]
    for member in group.members:
        _stand(config, observed, member, made)
    made[name] = _standing(name, group, observed, made)._replace(interrupt=group.interrupt)


def _standing(
    name: str, group: Group, observed: Observed, made: Mapping[str, Standing]
) -> Standing:
    if isinstance(group, SelectGroup):
        return standing.select(group.members, observed.chosen.get(name, ""))
    url = group.probe.url
    healths = {each: health_of(observed, each, url, made) for each in group.members}
    if isinstance(group, FallbackGroup):
        return standing.fallback(group.members, healths)
    if isinstance(group, LoadBalanceGroup):
        return standing.load_balance(group.members, healths, group.by)
    taken = observed.taken.get(name, "")
    return standing.url_test(group.members, healths, taken, group.tolerance / 1000)


def health_of(observed: Observed, member: str, url: str, made: Mapping[str, Standing]) -> Health:
    """How a member is; of a group, how the first usable outbound is that it would take."""
    ends = [path[-1] for path in standing.paths(made, member, lambda _: "")]
    healths = [observed.healths.get(Tried(end, url), UNKNOWN) for end in ends]
    return next((health for health in healths if health.usable), healths[0])
