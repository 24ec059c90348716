"""Checks of groups: members that exist, each once, and no group among its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gateway.config.findings import Finding, Path, did_you_mean
from gateway.config.groups import groups_of
from gateway.config.outbounds import BUILT_IN
from gateway.config.subject import Subject, reachable


def _members_exist(subject: Subject) -> Iterator[Finding]:
    outbounds = {*subject.config.outbounds, *BUILT_IN}
    for name, group in groups_of(subject.config).items():
        path: Path = ("outbounds", name, "members")
        if not group.members:
            yield Finding(path, "an empty group", "name the outbounds that it chooses from")
        for index, member in enumerate(group.members):
            if member not in outbounds:
                cure = did_you_mean(member, outbounds - {name}, "outbounds")
                yield Finding((*path, index), "unknown outbound", cure)
            elif member in group.members[:index]:
                yield Finding((*path, index), "stands here twice", "keep the first")


def _groups_end(subject: Subject) -> Iterator[Finding]:
    """No group leads back to itself, by however many steps."""
    groups = groups_of(subject.config)
    leads_to = {
        name: {member for member in group.members if member in groups}
        for name, group in groups.items()
    }
    for name, group in groups.items():
        for index, member in enumerate(group.members):
            path: Path = ("outbounds", name, "members", index)
            if member == name:
                yield Finding(
                    path, "its own member: it would be probed through itself", "remove it"
                )
            elif member in groups and name in reachable(member, leads_to):
                yield Finding(
                    path,
                    f"leads back to {name}, for ever",
                    "let groups lead to others in one direction only",
                )


GROUP_CHECKS: tuple[Callable[[Subject], Iterator[Finding]], ...] = (_members_exist, _groups_end)
