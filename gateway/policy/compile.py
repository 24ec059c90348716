"""From the rules as a person wrote them to a policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gateway.config.scalars import port_range
from gateway.config.schema import Config, Rule
from gateway.flow import Protocol
from gateway.policy.engine import Policy
from gateway.policy.names import NamePatterns
from gateway.policy.prefixes import Network, PrefixSet
from gateway.policy.rule import CompiledRule, PortRanges
from gateway.policy.rulesets import RuleSetData

#: Values of one key that a rule's text shows before it says how many more there are.
SHOWN_VALUES = 4


def compile_policy(config: Config, rule_sets: Mapping[str, RuleSetData]) -> Policy:
    """The policy of a configuration that ``config.load`` has found legal.

    ``rule_sets`` has every set that a rule names (``load_rule_sets``). Raises ``KeyError``
    for a missing one, ``ValueError`` where the last rule does not match everything.
    """
    subnets = {name: PrefixSet.from_networks(its) for name, its in config.lan.subnets.items()}
    sets = {name: PrefixSet.from_networks(data.networks) for name, data in rule_sets.items()}
    return Policy(_compiled(index, rule, subnets, sets) for index, rule in enumerate(config.rules))


def _compiled(
    index: int,
    rule: Rule,
    subnets: Mapping[str, PrefixSet],
    rule_sets: Mapping[str, PrefixSet],
) -> CompiledRule:
    ports, source_ports = _merged(rule.port), _merged(rule.source_port)
    protocols = tuple(map(Protocol, rule.protocol))
    if (ports or source_ports) and not protocols:
        protocols = (Protocol.TCP, Protocol.UDP)
    return CompiledRule(
        index=index,
        text=_text(index, rule),
        outbound=rule.to,
        source=_all_of(_any_of(rule.subnet, subnets), _any_of(rule.source, {})),
        destination=_all_of(
            _any_of(rule.destination, rule_sets), _any_of(rule.rule_set, rule_sets)
        ),
        ports=ports,
        source_ports=source_ports,
        protocols=protocols,
        interfaces=rule.interface,
        names=NamePatterns.of(rule.domain) if rule.domain else None,
        sniffed=rule.sniffed,
        log=rule.log,
        sniff=rule.sniff,
    )


def _any_of(entries: tuple[Network | str, ...], named: Mapping[str, PrefixSet]) -> PrefixSet | None:
    """What a key asks for: its CIDRs and its names together; None without the key."""
    if not entries:
        return None
    written = PrefixSet.from_networks(entry for entry in entries if not isinstance(entry, str))
    return PrefixSet.union(
        [written, *(named[entry] for entry in entries if isinstance(entry, str))]
    )


def _all_of(*asked: PrefixSet | None) -> tuple[Network, ...] | None:
    """The addresses that every key allows; None where no key asks."""
    both: PrefixSet | None = None
    for each in asked:
        if each is not None:
            both = each if both is None else both & each
    return None if both is None else both.networks


def _merged(ranges: Iterable[int | str]) -> PortRanges:
    """Port ranges sorted, those that touch made one."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(map(port_range, ranges)):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def _text(index: int, rule: Rule) -> str:
    """The rule on one line, for logs: ``rules[2] subnet=kids port=443 -> home``."""
    words = [f"rules[{index}]"]
    for key in rule.asked:
        values = getattr(rule, key)
        shown = ",".join(_written(value) for value in values[:SHOWN_VALUES])
        more = len(values) - SHOWN_VALUES
        words.append(f"{key}={shown}" + (f",+{more}" if more > 0 else ""))
    return " ".join([*words, "->", rule.to])


def _written(value: object) -> str:
    """A value as a person writes it: one address without its prefix length."""
    text = str(value)
    if isinstance(value, Network) and value.prefixlen == value.max_prefixlen:
        return text.partition("/")[0]
    return text
