"""What groups are made of, however deep: the outbounds at their ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gateway.config.outbounds import BUILT_IN, AnyOutbound, Group
from gateway.config.schema import Config
from gateway.config.subject import reachable


def groups_of(config: Config) -> dict[str, Group]:
    """The groups, by name."""
    return {name: each for name, each in config.outbounds.items() if isinstance(each, Group)}


def ends_of(config: Config, name: str) -> tuple[str, ...]:
    """The outbounds that flows may leave by, each once, in order; what is no group is its own."""
    return tuple(dict.fromkeys(_ends({**BUILT_IN, **config.outbounds}, name, ())))


def _ends(outbounds: Mapping[str, AnyOutbound], name: str, above: tuple[str, ...]) -> Iterator[str]:
    outbound = outbounds.get(name)
    if not isinstance(outbound, Group):
        yield name
    elif name not in above:
        for member in outbound.members:
            yield from _ends(outbounds, member, (*above, name))


def groups_within(config: Config, name: str) -> frozenset[str]:
    """The groups that flows of a group may pass, itself included."""
    groups = groups_of(config)
    leads_to = {
        each: {member for member in group.members if member in groups}
        for each, group in groups.items()
    }
    return frozenset(reachable(name, leads_to)) if name in groups else frozenset()


def stands_for(config: Config, name: str) -> AnyOutbound:
    """The outbound of that name; of a group whose ends are all alike, what they are.

    Raises ``KeyError`` for an unknown name.
    """
    ends = [config.outbound(end) for end in ends_of(config, name)]
    return ends[0] if all(end == ends[0] for end in ends) else config.outbound(name)
