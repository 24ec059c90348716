"""Checks across the keys of a valid configuration. Each is one function in the table below."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_address
from itertools import combinations

from gateway.config.findings import Finding, Path, did_you_mean
from gateway.config.group_checks import GROUP_CHECKS
from gateway.config.outbounds import BUILT_IN, DirectOutbound, RejectOutbound, Socks5Outbound
from gateway.config.rule_checks import RULE_CHECKS
from gateway.config.scalars import HOST_NAME
from gateway.config.schema import Config, UrlRuleSet
from gateway.config.subject import Subject, overlap
from gateway.config.tun_checks import TUN_CHECKS

#: RFC 1929 section 2: user and password are preceded by one octet with their length.
MAX_CREDENTIAL_BYTES = 255


def check(config: Config, shipped: frozenset[str]) -> tuple[Finding, ...]:
    """Everything that is wrong across keys. ``shipped`` names rule sets that come with us."""
    subject = Subject(config, shipped)
    return tuple(finding for one_check in _CHECKS for finding in one_check(subject))


def _somebody_is_served(subject: Subject) -> Iterator[Finding]:
    lan = subject.config.lan
    if not lan.interfaces and not lan.this_machine and not subject.config.tun.by_routing:
        yield Finding(
            ("lan", "interfaces"),
            "nobody's traffic would be diverted",
            "name the LAN's interfaces here, or set `this_machine: true`",
        )


def _no_empty_lists(subject: Subject) -> Iterator[Finding]:
    for name, networks in subject.config.lan.subnets.items():
        if not networks:
            yield Finding(
                ("lan", "subnets", name), "an empty subnet", "list its CIDRs, or leave it out"
            )
    for path, match in subject.matches:
        for key in sorted(match.model_fields_set):
            if getattr(match, key) == ():
                written = key.removesuffix("_")
                yield Finding((*path, written), "an empty list", "leave the key out to match all")
    for name, rules in subject.config.lists.items():
        if not rules:
            yield Finding(("lists", name), "an empty list", "write its rules, or leave it out")


def _subnets_are_apart(subject: Subject) -> Iterator[Finding]:
    subnets = subject.config.lan.subnets
    for (one, its), (other, others) in combinations(subnets.items(), 2):
        for index, network in enumerate(others):
            for overlapped in its:
                if overlap(network, overlapped):
                    yield Finding(
                        ("lan", "subnets", other, index),
                        f"{other} ({network}) overlaps {one} ({overlapped})",
                        "give each address to one subnet only",
                    )


def _subnets_that_fail(subject: Subject) -> Iterator[Finding]:
    subnets, inbound = subject.config.lan.subnets, subject.config.inbound
    if inbound.on_failure_of and inbound.classify == "nfqueue":
        yield Finding(
            ("inbound", "on_failure_of"),
            "a packet queue has one answer for all when nobody reads it",
            "use `classify: listener`, or one `on_failure` for all",
            at="key",
        )
    for name in inbound.on_failure_of:
        if name not in subnets:
            cure = did_you_mean(name, subnets, "subnets")
            yield Finding(("inbound", "on_failure_of", name), "unknown subnet", cure, at="key")


def _reserved_outbounds(subject: Subject) -> Iterator[Finding]:
    for name, built_in in BUILT_IN.items():
        outbound = subject.config.outbounds.get(name)
        if outbound is not None and outbound.type != built_in.type:
            yield Finding(
                ("outbounds", name),
                f"the name {name} is kept for outbounds of type {built_in.type}",
                "choose another name",
                at="key",
            )


def _egress(subject: Subject) -> Iterator[Finding]:
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


def _socks_credentials(subject: Subject) -> Iterator[Finding]:
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


def _socks_servers(subject: Subject) -> Iterator[Finding]:
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
        if loopback and subject.config.takes_own and not exempt and not outbound.netns:
            yield Finding(
                where,
                f"the proxy runs on this machine, and with `{_taking_own(subject)}` what it sends"
                " would be diverted to itself, for ever",
                "say which user or control group it runs as (`uid:`, `cgroup:`), or run it in a"
                " network namespace of its own (`netns:`)",
            )


def _taking_own(subject: Subject) -> str:
    if subject.config.lan.this_machine:
        return "this_machine: true"
    return f"tun.capture: {subject.config.tun.capture}"


def _socks_outbounds(subject: Subject) -> Iterator[tuple[Path, Socks5Outbound]]:
    for name, outbound in subject.config.outbounds.items():
        if isinstance(outbound, Socks5Outbound):
            yield ("outbounds", name), outbound


def _fetched_sets(subject: Subject) -> Iterator[Finding]:
    outbounds = {**BUILT_IN, **subject.config.outbounds}
    for name, rule_set in subject.config.rule_sets.items():
        if not isinstance(rule_set, UrlRuleSet):
            continue
        path: Path = ("rule_sets", name, "via")
        outbound = outbounds.get(rule_set.via)
        if outbound is None:
            cure = did_you_mean(rule_set.via, set(outbounds), "outbounds")
            yield Finding(path, "unknown outbound", cure)
        elif isinstance(outbound, RejectOutbound):
            yield Finding(path, "nothing is fetched through a refusal", "name a way out")


def _mark_base(subject: Subject) -> Iterator[Finding]:
    base = subject.config.marks.base
    if base & (base - 1):
        yield Finding(
            ("marks", "base"),
            "not a power of two",
            f"write the lowest of four free bits, such as {1 << (base.bit_length() - 1):#x}",
        )


_CHECKS: tuple[Callable[[Subject], Iterator[Finding]], ...] = (
    _somebody_is_served,
    _no_empty_lists,
    _subnets_are_apart,
    _subnets_that_fail,
    _reserved_outbounds,
    _egress,
    _socks_credentials,
    _socks_servers,
    _fetched_sets,
    *TUN_CHECKS,
    _mark_base,
    *GROUP_CHECKS,
    *RULE_CHECKS,
)
