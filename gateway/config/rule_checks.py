"""Checks of rules: names that exist, keys that go together, lists that end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

from gateway.config.findings import Finding, Path, did_you_mean
from gateway.config.outbounds import BUILT_IN, DirectOutbound, RejectOutbound
from gateway.config.rule_values import DHCP_PREFIX, mark_and_mask
from gateway.config.rules import Rule
from gateway.config.scalars import is_address
from gateway.config.schema import Config
from gateway.config.subject import Subject, nested, overlap, reachable
from gateway.decision import DIRECT
from gateway.marks import Marks


def _targets(subject: Subject) -> Iterator[Finding]:
    config = subject.config
    outbounds = {*config.outbounds, *BUILT_IN}
    for path, rule in subject.rules:
        if rule.to and rule.goto:
            yield Finding((*path, "goto"), "stands beside `to`", "write one of them", at="key")
        elif not rule.to and not rule.goto:
            yield Finding((*path, "to"), "is missing", f"write `to: …`: {_meaning('to')}")
        elif rule.to and rule.to not in outbounds:
            yield _unknown((*path, "to"), rule.to, outbounds, "outbound")
        elif rule.goto and rule.goto not in config.lists:
            yield _unknown((*path, "goto"), rule.goto, config.lists, "list")


def _meaning(key: str) -> str:
    return Rule.model_fields[key].description or ""


def _names_in_matches(subject: Subject) -> Iterator[Finding]:
    lan = subject.config.lan
    rule_sets = {*subject.config.rule_sets, *subject.shipped}
    for path, match in subject.matches:
        yield from _each_known((*path, "subnet"), match.subnet, lan.subnets, "subnet")
        yield from _each_known((*path, "destination"), match.destination, rule_sets, "rule set")
        yield from _each_known((*path, "rule_set"), match.rule_set, rule_sets, "rule set")
        for index, name in enumerate(match.device):
            if not _is_device(subject.config, name):
                yield _unknown((*path, "device", index), name, lan.devices, "device")
        for index, name in enumerate(match.interface):
            if lan.interfaces and name not in lan.interfaces:
                yield Finding(
                    (*path, "interface", index),
                    "nothing arrives on an interface that is not in lan.interfaces",
                    did_you_mean(name, lan.interfaces, "LAN interfaces"),
                )


def _each_known(
    path: Path, entries: Iterable[object], known: Collection[str], what: str
) -> Iterator[Finding]:
    """What is no name (a CIDR) is none that must be known."""
    for index, entry in enumerate(entries):
        if isinstance(entry, str) and entry not in known:
            yield _unknown((*path, index), entry, known, what)


def _unknown(path: Path, name: str, known: Iterable[str], what: str) -> Finding:
    return Finding(path, f"unknown {what}", did_you_mean(name, set(known), f"{what}s"))


def _ports_have_a_protocol(subject: Subject) -> Iterator[Finding]:
    for path, match in subject.matches:
        if "icmp" in match.protocol and (match.port or match.source_port):
            key = "port" if match.port else "source_port"
            yield Finding(
                (*path, key), "ICMP has no ports", "write a rule of its own for `protocol: icmp`"
            )


def _addresses_can_meet(subject: Subject) -> Iterator[Finding]:
    """A rule that no packet can match is a mistake, most often v4 on one side and v6 on the other.

    What is in a rule set is not known here: a rule that names one is left alone.
    """
    subnets = subject.config.lan.subnets
    for path, match in subject.matches:
        of_subnets = [network for name in match.subnet for network in subnets.get(name, ())]
        destinations = [entry for entry in match.destination if not isinstance(entry, str)]
        sources = [*match.source, *of_subnets]
        if (
            match.source
            and of_subnets
            and not any(overlap(one, other) for one in match.source for other in of_subnets)
        ):
            yield Finding(
                (*path, "source"),
                "no address is both here and in the rule's subnet, so the rule never matches",
                "keep one of `source` and `subnet`, or write two rules",
            )
        elif (
            sources
            and len(destinations) == len(match.destination) > 0
            and not {one.version for one in sources} & {one.version for one in destinations}
        ):
            yield Finding(
                (*path, "destination"),
                "source and destination have no address family in common, so the rule never"
                " matches",
                "write IPv4 with IPv4, and IPv6 with IPv6",
            )


def _conditions_ask_something(subject: Subject) -> Iterator[Finding]:
    for path, match in subject.matches:
        if not isinstance(match, Rule) and not match.asked:
            yield Finding(path, "asks nothing, so it matches everything", "write a key in it")


def _databases(subject: Subject) -> Iterator[Finding]:
    geo = subject.config.geo
    for path, match in subject.matches:
        if match.country and not geo.country:
            yield Finding((*path, "country"), "no database tells countries", _geo_cure("country"))
        if match.asn and not geo.asn:
            yield Finding((*path, "asn"), "no database tells ASNs", _geo_cure("asn"))


def _geo_cure(kind: str) -> str:
    return f"write `geo: {{{kind}: FILE.mmdb}}`"


def _devices(subject: Subject) -> Iterator[Finding]:
    for name, device in subject.config.lan.devices.items():
        if not device.mac and not device.hostname:
            yield Finding(
                ("lan", "devices", name),
                "nothing tells this device",
                "write its `mac`, or the `hostname` of its DHCP lease",
            )


def _own_traffic(subject: Subject) -> Iterator[Finding]:
    for path, match in subject.matches:
        for key in ("uid", "gid", "cgroup"):
            if not getattr(match, key):
                continue
            if not subject.config.takes_own:
                yield Finding(
                    (*path, key),
                    "only this machine's own flows have an owner, and they are not diverted",
                    "set `lan.this_machine: true`",
                )
            elif match.interface:
                yield Finding(
                    (*path, key),
                    "what arrives on an interface has no owner, so the rule never matches",
                    "write two rules",
                )


#: What the kernel alone does not know of a packet.
_LISTENER_KEYS = (
    "rule_set", "domain", "sniffed", "country", "asn", "time", "weekday", "cgroup",
)  # fmt: skip


def _group_ids(subject: Subject) -> Iterator[Finding]:
    """No interface tells a socket's group id: such a rule is the kernel's alone to decide."""
    for path, rule in subject.rules:
        matches = tuple(nested(path, rule))
        where = next(((*at, "gid") for at, match in matches if match.gid), None)
        if where is None:
            continue
        beside = [key for _, match in matches for key in _LISTENER_KEYS if getattr(match, key)]
        target = subject.config.outbounds.get(rule.to) or BUILT_IN.get(rule.to)
        if beside:
            yield Finding(
                where,
                f"only the kernel sees a group id, and it cannot ask for `{beside[0]}`",
                "use `uid` or `cgroup`, or leave the other key out",
            )
        elif target is None or not (
            isinstance(target, RejectOutbound) or target == BUILT_IN[DIRECT]
        ):
            yield Finding(
                where,
                "only the kernel sees a group id, and it can but reject or send direct",
                "use `uid` or `cgroup`",
            )


def _marks(subject: Subject) -> Iterator[Finding]:
    ours = Marks(subject.config.marks.base).mask
    for path, rule in subject.rules:
        if rule.mark is None:
            continue
        target = subject.config.outbounds.get(rule.to) or BUILT_IN.get(rule.to)
        if not isinstance(target, DirectOutbound):
            yield Finding(
                (*path, "mark"),
                "only flows sent direct keep a mark of yours",
                "use `to: direct`, or leave `mark` out",
                at="key",
            )
        if mark_and_mask(rule.mark).mask & ours:
            yield Finding((*path, "mark"), f"touches our own bits ({ours:#010x})", "use other bits")


def _assertions(subject: Subject) -> Iterator[Finding]:
    """What an assertion names is there."""
    config = subject.config
    outbounds = {*config.outbounds, *BUILT_IN}
    for index, assertion in enumerate(config.assertions):
        path: Path = ("assertions", index)
        if assertion.expect not in outbounds:
            yield _unknown((*path, "expect"), assertion.expect, outbounds, "outbound")
        if assertion.origin not in config.lan.subnets and not is_address(assertion.origin):
            yield _unknown((*path, "from"), assertion.origin, config.lan.subnets, "subnet")
        name = assertion.device
        if name is not None and not _is_device(config, name):
            yield _unknown((*path, "device"), name, config.lan.devices, "device")


def _is_device(config: Config, name: str) -> bool:
    return name in config.lan.devices or name.startswith(DHCP_PREFIX) or ":" in name


def _lists_end(subject: Subject) -> Iterator[Finding]:
    """No list leads back to itself, by however many steps."""
    lists = subject.config.lists
    leads_to = {
        name: {rule.goto for rule in rules if rule.goto in lists} for name, rules in lists.items()
    }
    for name, rules in lists.items():
        for index, rule in enumerate(rules):
            if rule.goto in lists and name in reachable(rule.goto, leads_to):
                yield Finding(
                    ("lists", name, index, "goto"),
                    f"leads back to {name}, for ever",
                    "let lists lead to others in one direction only",
                )


def _one_catch_all_at_the_end(subject: Subject) -> Iterator[Finding]:
    """The main list ends with its only catch-all; other lists may, and may go without."""
    for path, rules in subject.lists:
        first = next((index for index, rule in enumerate(rules) if rule.is_catch_all), None)
        if first is None:
            if path == ("rules",):
                yield Finding(
                    (*path, len(rules) - 1),
                    "the last rule does not match everything",
                    "end the list with the default, such as `- {to: direct}`",
                    at="key",
                )
            continue
        where = f"{'.'.join(map(str, path))}[{first}]"
        for index in range(first + 1, len(rules)):
            yield Finding(
                (*path, index),
                f"never reached: {where} matches everything",
                f"move it above {where}, or remove it",
                at="key",
            )


RULE_CHECKS: tuple[Callable[[Subject], Iterator[Finding]], ...] = (
    _targets,
    _names_in_matches,
    _ports_have_a_protocol,
    _addresses_can_meet,
    _conditions_ask_something,
    _databases,
    _devices,
    _own_traffic,
    _group_ids,
    _marks,
    _assertions,
    _lists_end,
    _one_catch_all_at_the_end,
)
