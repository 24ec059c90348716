"""What is legal in a configuration, but hardly meant: rules and names without any effect."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from gateway.config.findings import Finding, Path
from gateway.config.groups import groups_of, stands_for
from gateway.config.outbounds import FallbackGroup, RejectOutbound
from gateway.config.schema import Config, UrlRuleSet
from gateway.config.subject import Subject, named_sets
from gateway.policy.engine import Policy
from gateway.policy.names import NamePatterns, suffixes_of
from gateway.policy.prefixes import PrefixSet
from gateway.policy.rule import CompiledRule

#: Fields that are compared as wholes: equal, or not asked for by the rule above.
_OPAQUE = (
    "destinations", "hostnames", "uids", "gids", "cgroups", "sniffed", "countries", "asns",
    "all_of", "any_of", "none_of",
)  # fmt: skip
#: Fields of which any one value will do.
_WORDS = ("protocols", "interfaces", "macs", "dscps")
#: Fields that are stretches of a line.
_RANGES = ("ports", "source_ports", "times")


def lint(config: Config, policy: Policy) -> Iterator[Finding]:
    """Every warning. Takes time with the square of a list's length: for a check, not a start."""
    yield from _rules_in_vain(("rules",), policy.rules)
    for name, rules in policy.lists.items():
        yield from _rules_in_vain(("lists", name), rules)
    yield from _unused(config)
    yield from _groups(config)


def _rules_in_vain(where: Path, rules: Collection[CompiledRule]) -> Iterator[Finding]:
    above: list[_Asked] = []
    for index, rule in enumerate(rules):
        asked = _Asked.by(rule)
        path: Path = (*where, index)
        if rule.source == () or rule.destination == ():
            yield Finding(
                path,
                "never matches: there is no address that all its keys allow",
                "look at its rule sets (gateway rules show): one may be empty",
                at="key",
            )
            continue
        over = next((each for each in above if each.covers(asked)), None)
        if over is not None and not rule.is_catch_all:
            title = over.rule.text.partition(" ")[0]
            yield Finding(
                path,
                f"never reached: {title} takes every flow that it would match",
                f"move it above {title}, or remove it",
                at="key",
            )
        if not rule.goto:
            above.append(asked)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a rule asks, made ready to be compared."""

    rule: CompiledRule
    source: PrefixSet | None
    destination: PrefixSet | None
    ranges: tuple[PrefixSet | None, ...]

    @classmethod
    def by(cls, rule: CompiledRule) -> _Asked:
        """Of one rule."""
        return cls(
            rule,
            None if rule.source is None else PrefixSet.from_networks(rule.source),
            None if rule.destination is None else PrefixSet.from_networks(rule.destination),
            tuple(_stretches(rule, name) for name in _RANGES),
        )

    def covers(self, other: _Asked) -> bool:
        """Whether every flow that the other asks for is one that this asks for."""
        ours, theirs = self.rule, other.rule
        if not ours.sniff and (ours.asks_name or ours.asks_sniffed):
            return False
        return (
            _within(other.source, self.source)
            and _within(other.destination, self.destination)
            and all(map(_within, other.ranges, self.ranges))
            and all(_among(getattr(theirs, key), getattr(ours, key)) for key in _WORDS)
            and all(getattr(ours, key) in ((), getattr(theirs, key)) for key in _OPAQUE)
            and _names_within(theirs.names, ours.names)
        )


def _stretches(rule: CompiledRule, name: str) -> PrefixSet | None:
    """Stretches of a line are bounds, as a set of addresses is."""
    ranges = getattr(rule, name)
    if not ranges:
        return None
    last = 0 if name == "times" else 1
    return PrefixSet(tuple(bound for pair in ranges for bound in (pair[0], pair[1] + last)))


def _within(inner: PrefixSet | None, outer: PrefixSet | None) -> bool:
    return outer is None or (inner is not None and (inner & outer) == inner)


def _among(inner: Collection[object], outer: Collection[object]) -> bool:
    return not outer or (bool(inner) and set(inner) <= set(outer))


def _names_within(inner: NamePatterns | None, outer: NamePatterns | None) -> bool:
    if outer is None:
        return True
    return (
        inner is not None
        and all(map(outer.matches, inner.exact))
        and all(any(each in outer.suffixes for each in suffixes_of(s)) for s in inner.suffixes)
        and set(inner.patterns) <= set(outer.patterns)
    )


def _unused(config: Config) -> Iterator[Finding]:
    subject = Subject(config, frozenset())
    matches = [match for _, match in subject.matches]
    rules = [rule for _, rule in subject.rules]
    urls = [each for each in config.rule_sets.values() if isinstance(each, UrlRuleSet)]
    members = {member for group in groups_of(config).values() for member in group.members}
    subnets = {
        *(name for match in matches for name in match.subnet),
        *(assertion.origin for assertion in config.assertions),
        *config.inbound.on_failure_of,
    }
    devices = {
        *(name for match in matches for name in match.device),
        *(assertion.device for assertion in config.assertions),
    }
    places: tuple[tuple[Path, Collection[str], Collection[str | None]], ...] = (
        (
            ("outbounds",),
            config.outbounds,
            {*(rule.to for rule in rules), *(each.via for each in urls), *members},
        ),
        (("lists",), config.lists, {rule.goto for rule in rules}),
        (("rule_sets",), config.rule_sets, named_sets(config)),
        (("lan", "subnets"), config.lan.subnets, subnets),
        (("lan", "devices"), config.lan.devices, devices),
    )
    for path, written, named in places:
        for name in written:
            if name not in named:
                yield Finding((*path, name), "no rule names it", "use it, or remove it", at="key")


def _groups(config: Config) -> Iterator[Finding]:
    for name, group in groups_of(config).items():
        path: Path = ("outbounds", name, "members")
        if len(group.members) == 1:
            (only,) = group.members
            yield Finding(path, "there is nothing to choose", f"add a member, or use {only}")
        if not isinstance(group, FallbackGroup):
            continue
        for index, member in enumerate(group.members[:-1]):
            if isinstance(stands_for(config, member), RejectOutbound):
                yield Finding(
                    (*path, index + 1),
                    f"never taken: {member} before it never fails",
                    f"move it above {member}, or remove it",
                )
                break
