"""What differs between two configurations, in sentences for the one who reloads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gateway.config.schema import Config


def changes(old: Config, new: Config) -> tuple[str, ...]:
    """One sentence for each thing that changed; none where both say the same."""
    return tuple(_changes(old, new))


def _changes(old: Config, new: Config) -> Iterator[str]:
    yield from _named("outbound", old.outbounds, new.outbounds)
    yield from _named("rule set", old.rule_sets, new.rule_sets)
    yield from _named("subnet", old.lan.subnets, new.lan.subnets)
    if old.rules != new.rules:
        yield f"rules changed: {len(old.rules)} before, {len(new.rules)} now"
    for section in ("lan", "inbound", "tun", "udp", "icmp", "timeouts", "sniff", "log"):
        before, after = getattr(old, section), getattr(new, section)
        for key in type(after).model_fields:
            if key != "subnets" and getattr(before, key) != getattr(after, key):
                yield f"{section}.{key}: {getattr(before, key)} before, {getattr(after, key)} now"


def _named(what: str, old: Mapping[str, object], new: Mapping[str, object]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            yield f"{what} {name} removed"
        elif name not in old:
            yield f"{what} {name} added"
        elif old[name] != new[name]:
            yield f"{what} {name} changed"
