"""Checks across the keys of a valid configuration. Each is one function in the table below."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import combinations

from gateway.config.findings import Finding, Path, did_you_mean
from gateway.config.scalars import HOST_NAME
from gateway.config.schema import Config, DirectOutbound, Network, Rule, Socks5Outbound
from gateway.decision import DIRECT, REJECT

#: RFC 1929 section 2: user and password are preceded by one octet with their length.
MAX_CREDENTIAL_BYTES = 255


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is checked: the configuration, and the rule sets that exist without being in it."""

    config: Config
    shipped: frozenset[str]

    @property
    def rules(self) -> Iterator[tuple[Path, Rule]]:
        for index, rule in enumerate(self.config.rules):
            yield ("rules", index), rule


def check(config: Config, shipped: frozenset[str]) -> tuple[Finding, ...]:
    """Everything that is wrong across keys. ``shipped`` names rule sets that come with us."""
    subject = _Subject(config, shipped)
    return tuple(finding for one_check in _CHECKS for finding in one_check(subject))


def _somebody_is_served(subject: _Subject) -> Iterator[Finding]:
    lan = subject.config.lan
    if not lan.interfaces and not lan.this_machine:
        yield Finding(
            ("lan", "interfaces"),
            "nobody's traffic would be diverted",
            "name the LAN's interfaces here, or set `this_machine: true`",
        )


def _no_empty_lists(subject: _Subject) -> Iterator[Finding]:
    for name, networks in subject.config.lan.subnets.items():
        if not networks:
            yield Finding(
                ("lan", "subnets", name), "an empty subnet", "list its CIDRs, or leave it out"
            )
    for path, rule in subject.rules:
        for key in sorted(rule.model_fields_set):
            if getattr(rule, key) == ():
                yield Finding((*path, key), "an empty list", "leave the key out to match all")


def _subnets_are_apart(subject: _Subject) -> Iterator[Finding]:
    subnets = subject.config.lan.subnets
    for (one, its), (other, others) in combinations(subnets.items(), 2):
        for index, network in enumerate(others):
            for overlapped in its:
                if _overlap(network, overlapped):
                    yield Finding(
                        ("lan", "subnets", other, index),
                        f"{other} ({network}) overlaps {one} ({overlapped})",
                        "give each address to one subnet only",
                    )


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _reserved_outbounds(subject: _Subject) -> Iterator[Finding]:
    for name in (DIRECT, REJECT):
        outbound = subject.config.outbounds.get(name)
        if outbound is not None and outbound.type != name:
            yield Finding(
                ("outbounds", name),
                f"the name {name} is kept for outbounds of type {name}",
                "choose another name",
                at="key",
            )


def _egress(subject: _Subject) -> Iterator[Finding]:
    for name, outbound in subject.config.outbounds.items():
        path: Path = ("outbounds", name)
        if not isinstance(outbound, Socks5Outbound | DirectOutbound):
            continue
        yield from _strategy(path, outbound)
        if isinstance(outbound, DirectOutbound) and outbound.preserve_source and outbound.source:
            yield Finding(
                (*path, "source"),
                "the client's address is preserved, so another one cannot be bound",
                "remove `source` or `preserve_source`",
            )


#: What each strategy cannot do without: any one of these keys.
_NEEDS = {
    "device": ("interface",),
    "source": ("interface", "source"),
    "netns": ("netns",),
    "uid": ("uid",),
    "cgroup": ("cgroup",),
}
#: Keys that say which program or namespace is meant, each for one strategy alone.
_SPECIAL = ("netns", "uid", "cgroup")


def _strategy(path: Path, outbound: Socks5Outbound | DirectOutbound) -> Iterator[Finding]:
    route = outbound.route
    given = [key for key in _SPECIAL if getattr(outbound, key, None) is not None]
    needed = _NEEDS.get(route, ())
    if needed and all(getattr(outbound, key) is None for key in needed):
        keys = " or ".join(f"`{key}:`" for key in needed)
        yield Finding((*path, "route"), f"{route} without {keys}", f"add {keys}")
    for key in given:
        if route not in ("auto", key):
            yield Finding(
                (*path, key), f"means nothing with route: {route}", f"remove it, or `route: {key}`"
            )
    if route == "auto" and len(given) > 1:
        yield Finding((*path, given[1]), f"beside {given[0]}", "keep one of the two")
    if "netns" in given and outbound.interface is not None:
        yield Finding(
            (*path, "interface"),
            "is one of this namespace, and the sockets are made in another",
            "remove it: routing in that network namespace decides",
        )


def _socks_credentials(subject: _Subject) -> Iterator[Finding]:
    for path, outbound in _socks_outbounds(subject):
        if outbound.password is not None:
            password = outbound.password.get_secret_value()
            if not 1 <= len(password.encode()) <= MAX_CREDENTIAL_BYTES:
                yield Finding((*path, "password"), "must be 1 to 255 bytes", at="key", secret=True)
            if outbound.username is None:
                yield Finding(
                    (*path, "password"),
                    "a password without a user",
                    "add `username:` (RFC 1929 has both or neither)",
                    at="key",
                )
        elif outbound.username is not None:
            yield Finding(
                (*path, "username"),
                "a user without a password",
                "add `password: !env NAME` (RFC 1929 has both or neither)",
            )
        if len((outbound.username or "").encode()) > MAX_CREDENTIAL_BYTES:
            yield Finding((*path, "username"), "must be 1 to 255 bytes", "")


def _socks_servers(subject: _Subject) -> Iterator[Finding]:
    for path, outbound in _socks_outbounds(subject):
        server, where = outbound.server, (*path, "server")
        try:
            loopback = ip_address(server).is_loopback
        except ValueError:
            loopback = server.rstrip(".").casefold() == "localhost"
            # A name whose last label is a number is never one (RFC 3696 section 2).
            last = server.rstrip(".").rpartition(".")[2]
            if not HOST_NAME.fullmatch(server) or last.isdecimal():
                yield Finding(
                    where,
                    "neither an address nor a host name",
                    "write the host here and the number in `port:`",
                )
        exempt = outbound.uid is not None or outbound.cgroup is not None
        if loopback and subject.config.lan.this_machine and not exempt and not outbound.netns:
            yield Finding(
                where,
                "the proxy runs on this machine, and with `this_machine: true` what it sends"
                " would be diverted to itself, for ever",
                "say which user or control group it runs as (`uid:`, `cgroup:`), or run it in a"
                " network namespace of its own (`netns:`)",
            )


def _socks_outbounds(subject: _Subject) -> Iterator[tuple[Path, Socks5Outbound]]:
    for name, outbound in subject.config.outbounds.items():
        if isinstance(outbound, Socks5Outbound):
            yield ("outbounds", name), outbound


def _mark_base(subject: _Subject) -> Iterator[Finding]:
    base = subject.config.marks.base
    if base & (base - 1):
        yield Finding(
            ("marks", "base"),
            "not a power of two",
            f"write the lowest of four free bits, such as {1 << (base.bit_length() - 1):#x}",
        )


def _names_in_rules(subject: _Subject) -> Iterator[Finding]:
    config = subject.config
    rule_sets = {*config.rule_sets, *subject.shipped}
    outbounds = {*config.outbounds, DIRECT, REJECT}
    for path, rule in subject.rules:
        if rule.to not in outbounds:
            yield _unknown((*path, "to"), rule.to, outbounds, "outbound")
        for index, name in enumerate(rule.subnet):
            if name not in config.lan.subnets:
                yield _unknown((*path, "subnet", index), name, config.lan.subnets, "subnet")
        for key, entries in (("destination", rule.destination), ("rule_set", rule.rule_set)):
            for index, entry in enumerate(entries):
                if isinstance(entry, str) and entry not in rule_sets:
                    yield _unknown((*path, key, index), entry, rule_sets, "rule set")
        for index, name in enumerate(rule.interface):
            interfaces = config.lan.interfaces
            if interfaces and name not in interfaces:
                yield Finding(
                    (*path, "interface", index),
                    "nothing arrives on an interface that is not in lan.interfaces",
                    did_you_mean(name, interfaces, "LAN interfaces"),
                )


def _unknown(path: Path, name: str, known: Iterable[str], what: str) -> Finding:
    return Finding(path, f"unknown {what}", did_you_mean(name, set(known), f"{what}s"))


def _ports_have_a_protocol(subject: _Subject) -> Iterator[Finding]:
    for path, rule in subject.rules:
        if "icmp" in rule.protocol and (rule.port or rule.source_port):
            key = "port" if rule.port else "source_port"
            yield Finding(
                (*path, key), "ICMP has no ports", "write a rule of its own for `protocol: icmp`"
            )


def _addresses_can_meet(subject: _Subject) -> Iterator[Finding]:
    """A rule that no packet can match is a mistake, most often v4 on one side and v6 on the other.

    What is in a rule set is not known here: a rule that names one is left alone.
    """
    subnets = subject.config.lan.subnets
    for path, rule in subject.rules:
        of_subnets = [network for name in rule.subnet for network in subnets.get(name, ())]
        destinations = [entry for entry in rule.destination if not isinstance(entry, str)]
        sources = [*rule.source, *of_subnets]
        if (
            rule.source
            and of_subnets
            and not any(_overlap(one, other) for one in rule.source for other in of_subnets)
        ):
            yield Finding(
                (*path, "source"),
                "no address is both here and in the rule's subnet, so the rule never matches",
                "keep one of `source` and `subnet`, or write two rules",
            )
        elif (
            sources
            and len(destinations) == len(rule.destination) > 0
            and not {one.version for one in sources} & {one.version for one in destinations}
        ):
            yield Finding(
                (*path, "destination"),
                "source and destination have no address family in common, so the rule never"
                " matches",
                "write IPv4 with IPv4, and IPv6 with IPv6",
            )


def _one_catch_all_at_the_end(subject: _Subject) -> Iterator[Finding]:
    rules = subject.config.rules
    first = next((index for index, rule in enumerate(rules) if rule.is_catch_all), None)
    if first is None:
        yield Finding(
            ("rules", len(rules) - 1),
            "the last rule does not match everything",
            "end the list with the default, such as `- {to: direct}`",
            at="key",
        )
        return
    for index in range(first + 1, len(rules)):
        yield Finding(
            ("rules", index),
            f"never reached: rules[{first}] matches everything",
            f"move it above rules[{first}], or remove it",
            at="key",
        )


_CHECKS: tuple[Callable[[_Subject], Iterator[Finding]], ...] = (
    _somebody_is_served,
    _no_empty_lists,
    _subnets_are_apart,
    _reserved_outbounds,
    _egress,
    _socks_credentials,
    _socks_servers,
    _mark_base,
    _names_in_rules,
    _ports_have_a_protocol,
    _addresses_can_meet,
    _one_catch_all_at_the_end,
)
