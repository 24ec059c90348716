"""Names of SOCKS servers that are looked up by the very outbound which needs them.

That works for as long as the server stays where it is. Once it has moved, the question where
it is now goes to where it was, and nothing ever answers it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from gateway.config.domains import canonical_name
from gateway.config.groups import ends_of
from gateway.config.outbounds import Socks5Outbound
from gateway.config.schema import Config
from gateway.flow import Endpoint, FlowFacts, Owner, Protocol
from gateway.plan.egress import ANYWHERE
from gateway.plan.host import HostFacts, Interface
from gateway.policy.engine import Policy

_DNS_PORT: Final = 53
#: Of a socket that has not been bound; rules hardly ask.
_SOME_PORT: Final = 40_000
_ROOT: Final = Owner(0, 0)


@dataclass(frozen=True, slots=True)
class Lookup:
    """One name that ``asker`` looks up by ``outbound``, whose server has that name.

    ``certain``: the asker is this machine itself, so that it is known whom it asks: ``resolver``.
    Otherwise it is a name server, here or in the LAN, that asks others in turn.
    """

    outbound: str
    server: str
    asker: str
    resolver: str
    rule: str
    certain: bool

    @property
    def reason(self) -> str:
        """What is wrong."""
        if self.certain:
            return (
                f"{self.server} is looked up at {self.resolver}, and {self.rule} sends that"
                f" question by outbound {self.outbound} itself: once the server has moved, it is"
                " never found"
            )
        return (
            f"{self.server} is looked up at {self.asker}; what that name server asks in turn,"
            f" {self.rule} sends by outbound {self.outbound} itself"
        )

    @property
    def hint(self) -> str:
        """The rule that is missing."""
        if self.certain:
            rule = f"{{destination: {self.resolver}, port: 53, to: direct}}"
        elif ip_address(self.asker).is_loopback:
            rule = "{uid: USER_OF_THE_NAME_SERVER, port: 53, to: direct}"
        else:
            rule = f"{{source: {self.asker}, port: 53, to: direct}}"
        return f"put {rule} before that rule, or give the server's address"


def needed_names(config: Config) -> dict[str, frozenset[str]]:
    """The outbounds that need a name to be looked up, by that name (canonical).

    Groups among them, which may choose such a one.
    """
    found: dict[str, set[str]] = {}
    for outbound, name in _by_name(config):
        found.setdefault(name, set()).update(_leading_to(config, outbound))
    return {name: frozenset(outbounds) for name, outbounds in found.items()}


def through_themselves(config: Config, policy: Policy, host: HostFacts) -> tuple[Lookup, ...]:
    """Every name that an outbound looks up by itself, at any time of the week; each once."""
    if config.inbound.udp == "off":
        return ()
    found = (
        Lookup(outbound, name, facts.source.host, facts.destination.host, rule, certain)
        for outbound, name in _by_name(config)
        for facts, certain in _questions(config, policy, host)
        for rule in _rules(policy, facts, _leading_to(config, outbound))
    )
    return tuple({(each.outbound, each.asker, each.resolver): each for each in found}.values())


def _by_name(config: Config) -> Iterator[tuple[str, str]]:
    """Each SOCKS outbound whose server is given by name."""
    for outbound, settings in config.outbounds.items():
        if isinstance(settings, Socks5Outbound):
            name = canonical_name(settings.server)
            if name is not None and name != "localhost":
                yield outbound, name


def _questions(config: Config, policy: Policy, host: HostFacts) -> Iterator[tuple[FlowFacts, bool]]:
    """The queries that are diverted when a name is looked up here; and whether that is certain."""
    for resolver in host.resolvers:
        version = ip_address(resolver).version
        here = ip_address(resolver).is_loopback or resolver in host.addresses
        link = _lan_link(config, host, resolver)
        own = _own_address(host, version)
        diverted = _is_taken(config, resolver)
        if diverted and not here and own is not None:
            yield _query(own, resolver)._replace(owner=_ROOT), True
        elif here and _is_taken(config, ANYWHERE[version == 6]) and not policy.needs.owner:
            # Rules that ask for an owner may well be about this name server.
            yield _query(resolver, ANYWHERE[version == 6]), False
        if link is not None and not here:
            yield _query(resolver, ANYWHERE[version == 6])._replace(interface=link.name), False


def _is_taken(config: Config, resolver: str) -> bool:
    """Whether what this machine sends there comes to us."""
    if config.tun.capture in ("prefixes", "fake-ip"):
        return any(ip_address(resolver) in prefix for prefix in config.tun.prefixes)
    return config.takes_own


def _query(asker: str, resolver: str) -> FlowFacts:
    source, destination = Endpoint(asker, _SOME_PORT), Endpoint(resolver, _DNS_PORT)
    return FlowFacts(Protocol.UDP, source, destination, name="", sniffed="dns")


def _leading_to(config: Config, outbound: str) -> frozenset[str]:
    """The outbound, and the groups that may choose it."""
    return frozenset(name for name in config.outbounds if outbound in ends_of(config, name))


def _rules(policy: Policy, facts: FlowFacts, outbounds: frozenset[str]) -> Iterator[str]:
    """The rules that send the query by one of these outbounds, at some time of the week."""
    for now in policy.moments if policy.needs.time else (None,):
        decision = policy.settle(facts, now)
        if decision.outbound in outbounds:
            yield decision.rule


def _own_address(host: HostFacts, version: int) -> str | None:
    return next(
        (str(a) for link in host.interfaces for a in link.lasting if a.version == version), None
    )


def _lan_link(config: Config, host: HostFacts, address: str) -> Interface | None:
    """The LAN interface that the address is behind."""
    wanted = ip_address(address)
    for link in host.interfaces:
        if link.name in config.lan.interfaces and any(wanted in a.network for a in link.addresses):
            return link
    return None
