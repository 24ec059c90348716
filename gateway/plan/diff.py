"""What would change if a plan were applied to what is installed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from ipaddress import get_mixed_type_key
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar

from gateway.marks import TAG_PREFIX
from gateway.plan.addresses import Network
from gateway.plan.model import IpRule, Plan, Route
from gateway.plan.render_ip import route_line, rule_line
from gateway.plan.snapshot import ChainKey, Snapshot, expected_chains

K = TypeVar("K")
T = TypeVar("T")

#: Longer lists of prefixes are cut when shown.
_SHOWN_PREFIXES: Final = 8


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """What is to be added, removed, and (in a chain) put in another place."""

    added: tuple[T, ...] = ()
    removed: tuple[T, ...] = ()
    moved: tuple[T, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing changes."""
        return not (self.added or self.removed or self.moved)


@dataclass(frozen=True, slots=True)
class SysctlChange:
    """A sysctl that gets another value: the planned one, or the one from before us."""

    key: str
    now: str | None
    to: str


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """The difference, with only what changes in ``chains`` and ``sets``."""

    chains: Mapping[ChainKey, Change[str]]
    sets: Mapping[str, Change[Network]]
    ip_rules: Change[IpRule]
    routes: Change[Route]
    sysctls: tuple[SysctlChange, ...]

    @property
    def empty(self) -> bool:
        """Whether the plan is installed as it stands."""
        return not (self.chains or self.sets or self.sysctls) and (
            self.ip_rules.empty and self.routes.empty
        )

    def render(self) -> str:
        """The difference for people: ``+`` added, ``-`` removed, ``~`` moved or changed."""
        return "".join(line + "\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        for key, chain in self.chains.items():
            yield f"table {key.table}, chain {key.chain} ({key.family})"
            yield from _signed(chain, "  ", _rule_name)
        for name, prefixes in self.sets.items():
            yield f"set {name}"
            yield from _prefix_lines(prefixes)
        for sysctl in self.sysctls:
            yield f"~ sysctl {sysctl.key}: {sysctl.now} -> {sysctl.to}"
        yield from _signed(self.routes, "", lambda route: route_line(route, "add"))
        yield from _signed(self.ip_rules, "", lambda rule: rule_line(rule, "add"))


def diff(installed: Snapshot, wanted: Plan) -> PlanDiff:
    """Compare a reading of the machine with a plan.

    Elements of a set with a time-out come and go by themselves: only the set is compared.
    """
    chains = expected_chains(wanted)
    sets: dict[str, Collection[Network]] = {s.name: s.elements for s in wanted.sets}
    for timed in (s for s in wanted.sets if s.timeout_s is not None):
        sets[timed.name] = installed.sets.get(timed.name, timed.elements)
    return PlanDiff(
        chains=_changes(
            (key, _sequence_change(installed.chains.get(key, ()), chains.get(key, ())))
            for key in sorted({*installed.chains, *chains})
        ),
        sets=_changes(
            (name, _change(installed.sets.get(name, ()), sets.get(name, ()), get_mixed_type_key))
            for name in sorted({*installed.sets, *sets})
        ),
        ip_rules=_change(installed.ip_rules, wanted.ip_rules, attrgetter("family", "priority")),
        routes=_change(installed.routes, wanted.routes, attrgetter("family", "table")),
        sysctls=tuple(_sysctl_changes(installed, wanted)),
    )


def _changes(changes: Iterable[tuple[K, Change[T]]]) -> dict[K, Change[T]]:
    return {key: change for key, change in changes if not change.empty}


def _change(now: Collection[T], wanted: Collection[T], order: Callable[[T], Any]) -> Change[T]:
    return Change(
        added=tuple(sorted({*wanted} - {*now}, key=order)),
        removed=tuple(sorted({*now} - {*wanted}, key=order)),
    )


def _sequence_change(now: tuple[str, ...], wanted: tuple[str, ...]) -> Change[str]:
    removed: Counter[str] = Counter()
    added: Counter[str] = Counter()
    matcher = SequenceMatcher(a=now, b=wanted, autojunk=False)
    for operation, now_from, now_to, wanted_from, wanted_to in matcher.get_opcodes():
        if operation != "equal":
            removed.update(now[now_from:now_to])
            added.update(wanted[wanted_from:wanted_to])
    moved = removed & added
    return Change(
        added=tuple((added - moved).elements()),
        removed=tuple((removed - moved).elements()),
        moved=tuple(moved.elements()),
    )


def _sysctl_changes(installed: Snapshot, wanted: Plan) -> Iterator[SysctlChange]:
    for sysctl in wanted.sysctls:
        now = installed.sysctls.get(sysctl.key)
        if now != sysctl.value:
            yield SysctlChange(sysctl.key, now, sysctl.value)
    planned = {sysctl.key for sysctl in wanted.sysctls}
    for key, before in installed.restore.items():
        if key not in planned and installed.sysctls.get(key) != before:
            yield SysctlChange(key, installed.sysctls.get(key), before)


def _rule_name(tag: str) -> str:
    return tag.removeprefix(TAG_PREFIX) or "(a rule that is not ours)"


def _signed(change: Change[T], indent: str, show: Callable[[T], str]) -> Iterator[str]:
    for sign, values in (("-", change.removed), ("~", change.moved), ("+", change.added)):
        for value in values:
            yield f"{indent}{sign} {show(value)}"


def _prefix_lines(change: Change[Network]) -> Iterator[str]:
    for sign, prefixes in (("-", change.removed), ("+", change.added)):
        for prefix in prefixes[:_SHOWN_PREFIXES]:
            yield f"  {sign} {prefix}"
        if len(prefixes) > _SHOWN_PREFIXES:
            yield f"  {sign} ... and {len(prefixes) - _SHOWN_PREFIXES} more"
