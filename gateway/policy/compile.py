"""From the rules as a person wrote them to a policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from types import MappingProxyType
from typing import Any, NamedTuple

from gateway.config.rule_values import (
    DAY,
    DHCP_PREFIX,
    mark_and_mask,
    time_range,
    weekday_range,
)
from gateway.config.rules import Match, Rule
from gateway.config.scalars import port_range
from gateway.config.schema import Config
from gateway.flow import Protocol
from gateway.policy.engine import Policy
from gateway.policy.names import NamePatterns
from gateway.policy.prefixes import Network, PrefixSet
from gateway.policy.question import Geography
from gateway.policy.rule import WEEK, CompiledRule, Condition, Destinations, LargeSet, PortRanges
from gateway.policy.rulesets import RuleSetData

#: Values of one key that a rule's text shows before it says how many more there are.
SHOWN_VALUES = 4

#: A rule set without names and with at most so many intervals of addresses becomes part of the
#: rules that name it, where asking costs nothing.
MERGED_INTERVALS = 1000

_FAMILIES = {4: PrefixSet.from_networks([ip_network("0.0.0.0/0")])}
_FAMILIES |= {6: PrefixSet.from_networks([ip_network("::/0")])}


class Accounts(NamedTuple):
    """The numbers of users and groups of this machine, by the names that rules have for them."""

    users: Mapping[str, int] = MappingProxyType({})
    groups: Mapping[str, int] = MappingProxyType({})


NO_ACCOUNTS = Accounts()


def compile_policy(
    config: Config,
    rule_sets: Mapping[str, RuleSetData],
    geography: Geography | None = None,
    accounts: Accounts = NO_ACCOUNTS,
) -> Policy:
    """The policy of a configuration that ``config.load`` has found legal.

    ``rule_sets`` has every set that a rule names (``load_rule_sets``); ``geography`` may be
    None where no rule asks for a country or an autonomous system; ``accounts`` has every user and
    group that a rule names. Raises ``KeyError`` for a name that is missing, ``ValueError`` where
    the last rule does not match everything.
    """
    names = _Names(
        config,
        {name: PrefixSet.from_networks(its) for name, its in config.lan.subnets.items()},
        {name: _named_set(data) for name, data in rule_sets.items()},
        accounts,
    )
    lists = {
        name: [names.rule(f"lists.{name}[{index}]", index, rule) for index, rule in enumerate(its)]
        for name, its in config.lists.items()
    }
    main = [names.rule(f"rules[{index}]", index, rule) for index, rule in enumerate(config.rules)]
    return Policy(main, lists, geography)


@dataclass(frozen=True, slots=True)
class _Names:
    """What the names in rules stand for."""

    config: Config
    subnets: Mapping[str, PrefixSet]
    rule_sets: Mapping[str, PrefixSet | LargeSet]
    accounts: Accounts

    def rule(self, title: str, index: int, rule: Rule) -> CompiledRule:
        return CompiledRule(
            index=index,
            text=f"{title} {_text(rule)}".replace("  ", " "),
            outbound=rule.to,
            goto=rule.goto,
            mark=None if rule.mark is None else mark_and_mask(rule.mark),
            log=rule.log,
            sniff=rule.sniff,
            udp_fallback=rule.udp_fallback,
            **self._asked(rule),
        )

    def _asked(self, match: Match) -> dict[str, Any]:
        ports, source_ports = _merged(match.port), _merged(match.source_port)
        protocols = tuple(map(Protocol, match.protocol))
        if (ports or source_ports) and not protocols:
            protocols = (Protocol.TCP, Protocol.UDP)
        macs, hostnames = self._devices(match.device)
        merged, large = self._destinations(match)
        return {
            "source": _all_of(_any_of(match.subnet, self.subnets), _any_of(match.source, {})),
            "destination": _all_of(*merged),
            "destinations": large,
            "ports": ports,
            "source_ports": source_ports,
            "protocols": protocols,
            "interfaces": match.interface,
            "macs": macs,
            "hostnames": hostnames,
            "dscps": match.dscp,
            "uids": _numbers(match.uid, self.accounts.users),
            "gids": _numbers(match.gid, self.accounts.groups),
            "cgroups": match.cgroup,
            "names": NamePatterns.of(match.domain) if match.domain else None,
            "sniffed": match.sniffed,
            "countries": match.country,
            "asns": match.asn,
            "times": _stretches(match.time, match.weekday),
            "all_of": self._conditions(match.all),
            "any_of": self._conditions(match.any),
            "none_of": self._conditions(match.not_),
        }

    def _destinations(
        self, match: Match
    ) -> tuple[list[PrefixSet | None], tuple[Destinations, ...]]:
        """What must hold of the destination: prefixes to merge, and keys that name large sets."""
        merged = [_FAMILIES[match.ip_version] if match.ip_version else None]
        large: list[Destinations] = []
        for entries in (match.destination, match.rule_set):
            parts = [
                self.rule_sets[entry]
                if isinstance(entry, str)
                else PrefixSet.from_networks([entry])
                for entry in entries
            ]
            asked = tuple(part for part in parts if isinstance(part, LargeSet))
            prefixes = PrefixSet.union(part for part in parts if isinstance(part, PrefixSet))
            if asked:
                large.append(Destinations(prefixes.networks, asked))
            elif entries:
                merged.append(prefixes)
        return merged, tuple(large)

    def _conditions(self, matches: Iterable[Match]) -> tuple[Condition, ...]:
        return tuple(Condition(**self._asked(match)) for match in matches)

    def _devices(self, devices: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """MAC addresses and host names of all devices, each once."""
        macs: list[str] = []
        hostnames: list[str] = []
        for device in devices:
            known = self.config.lan.devices.get(device)
            if known is not None:
                macs += known.mac
                hostnames += known.hostname
            elif device.startswith(DHCP_PREFIX):
                hostnames.append(device.removeprefix(DHCP_PREFIX))
            else:
                macs.append(device)
        return tuple(dict.fromkeys(macs)), tuple(dict.fromkeys(hostnames))


def _named_set(data: RuleSetData) -> PrefixSet | LargeSet:
    """A few prefixes are merged with those of the rule; what is more is asked by itself."""
    if not len(data.names) and len(data.prefixes) <= MERGED_INTERVALS:
        return PrefixSet.from_networks(data.networks)
    return LargeSet(
        data.name,
        data.prefixes if len(data.prefixes) else None,
        data.names if len(data.names) else None,
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


def _numbers(asked: Iterable[int | str], known: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(known[each] if isinstance(each, str) else each for each in asked))


def _merged(ranges: Iterable[int | str]) -> PortRanges:
    """Port ranges sorted, those that touch made one."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(map(port_range, ranges)):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def _stretches(times: Iterable[str], weekdays: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """Hours on weekdays as stretches of the week; what runs over Sunday's end begins it anew."""
    hours = [time_range(each) for each in times]
    days = {day for each in weekdays for day in weekday_range(each)}
    if not hours and not days:
        return ()
    minutes = bytearray(WEEK + DAY)
    for day in days or range(7):
        for first, behind in hours or [(0, DAY)]:
            start, length = day * DAY + first, behind - first
            minutes[start : start + length] = b"\1" * length
    for minute in range(DAY):
        minutes[minute] |= minutes[WEEK + minute]
    changes = [at for at in range(WEEK) if minutes[at] != (minutes[at - 1] if at else 0)]
    bounds = changes if len(changes) % 2 == 0 else [*changes, WEEK]
    return tuple(zip(bounds[::2], bounds[1::2], strict=True))


def _text(rule: Rule) -> str:
    """The rule on one line, for logs: ``subnet=kids port=443 -> home``."""
    target = rule.to or f"goto {rule.goto}"
    return f"{_conditions_text(rule)} -> {target}"


def _conditions_text(match: Match) -> str:
    words = []
    for key, value in match.asked.items():
        values = value if isinstance(value, tuple) else (value,)
        shown = ",".join(_written(value) for value in values[:SHOWN_VALUES])
        more = len(values) - SHOWN_VALUES
        words.append(f"{key}={shown}" + (f",+{more}" if more > 0 else ""))
    return " ".join(words)


def _written(value: object) -> str:
    """A value as a person writes it: one address without its prefix length."""
    if isinstance(value, Match):
        return f"({_conditions_text(value)})"
    text = str(value)
    if isinstance(value, Network) and value.prefixlen == value.max_prefixlen:
        return text.partition("/")[0]
    return text
