"""The owner's rules as netfilter rules: one chain in the order of the file, first match wins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2s
from typing import Literal

from gateway.config.schema import Config, DirectOutbound, RejectOutbound
from gateway.flow import Protocol
from gateway.marks import SET_PREFIX
from gateway.plan.model import (
    Addresses,
    AddressSet,
    Chain,
    Drop,
    Family,
    Goto,
    InInterface,
    InSet,
    Match,
    Network,
    NftRule,
    Ports,
    RulePlacement,
    Transport,
    Verdict,
)
from gateway.policy.rule import CompiledRule

Side = Literal["source", "destination"]
Place = Literal["kernel", "listener", "both"]

#: Chains that carry out what a rule says.
DIRECT = "direct"
REFUSE = "refuse"
REFUSE_ICMP = "refuse_icmp"

_PLAIN_DIRECT = DirectOutbound(type="direct")


def policy_chain(
    name: str,
    rules: Sequence[CompiledRule],
    config: Config,
    families: Sequence[Family],
    divert: str,
) -> Chain:
    """All rules as one chain; those that need the gateway itself go to the chain ``divert``."""
    return Chain(
        name,
        "mangle",
        tuple(
            nft_rule
            for rule in rules
            for nft_rule in _nft_rules(
                rule, _verdict(config, rule, divert), families, _carried(config)
            )
        ),
    )


def prefix_lists(
    rules: Sequence[CompiledRule], families: Sequence[Family]
) -> Iterator[tuple[Network, ...]]:
    """Every list of prefixes, each of one family, that the rules match against."""
    for rule in rules:
        for family in families:
            # A rule that is not for this family has no list of it.
            yield from _addresses(rule, family) or ()


def address_sets(lists: Iterable[tuple[Network, ...]]) -> list[AddressSet]:
    """The sets that ``address_match`` refers to for these lists, each once."""
    families = {4: Family.V4, 6: Family.V6}
    found = {set_name(prefixes): prefixes for prefixes in lists if needs_set(prefixes)}
    return [AddressSet(name, families[p[0].version], p) for name, p in found.items()]


def placement(rule: CompiledRule, config: Config) -> RulePlacement:
    """Where the rule is decided, and why there."""
    return RulePlacement(rule.index, rule.text, *_place(rule, config))


def _place(rule: CompiledRule, config: Config) -> tuple[Place, str]:
    if not rule.by_packet:
        seen = " and ".join(protocol.upper() for protocol in _carried(config))
        passing = "ICMP passes" if config.inbound.udp != "off" else "UDP and ICMP pass"
        return "listener", f"the kernel diverts the {seen} that it may match; {passing} it by"
    outbound = config.outbound(rule.outbound)
    if outbound == _PLAIN_DIRECT:
        return "kernel", "routed on, never enters the gateway"
    if isinstance(outbound, RejectOutbound):
        return "kernel", f"refused there ({outbound.answer})"
    may_be = [p for p in Protocol if _may_be(rule, p)]
    carried = [p.upper() for p in may_be if p in _carried(config)]
    lost = [p.upper() for p in may_be if p not in _carried(config)]
    not_carried = f"{' and '.join(lost)}: routed on, not proxied"
    if not carried:
        return "kernel", not_carried
    diverted = " and ".join(carried)
    reason = f"the kernel diverts {diverted}, the listener connects through {rule.outbound}"
    return "both", f"{reason}; {not_carried}" if lost else reason


def _carried(config: Config) -> tuple[Protocol, ...]:
    """The protocols that listeners take."""
    return (Protocol.TCP,) if config.inbound.udp == "off" else (Protocol.TCP, Protocol.UDP)


def _may_be(rule: CompiledRule, protocol: Protocol) -> bool:
    return not rule.protocols or protocol in rule.protocols


def needs_set(prefixes: Sequence[Network]) -> bool:
    """One prefix stands in the rule itself; more go to a set."""
    return len(prefixes) > 1


def set_name(prefixes: Sequence[Network]) -> str:
    """The name of the set with these prefixes.

    It is a digest of the content: a changed list is a new set, so on a reload the chains in
    use never see a list that belongs to other rules, whatever the order of the changes.
    """
    text = ",".join(map(str, prefixes))
    digest = blake2s(text.encode(), digest_size=5).hexdigest()
    return f"{SET_PREFIX}v{prefixes[0].version}_{digest}"


def address_match(side: Side, prefixes: tuple[Network, ...]) -> tuple[Match, ...]:
    """The match for prefixes of one family; none at all where they are the whole family."""
    if needs_set(prefixes):
        return (InSet(side, set_name(prefixes)),)
    if not prefixes or prefixes[0].prefixlen == 0:
        return ()
    return (Addresses(side, prefixes),)


def of_family(networks: Iterable[Network], family: Family) -> tuple[Network, ...]:
    """The members of one family, in order."""
    version = 4 if family is Family.V4 else 6
    return tuple(network for network in networks if network.version == version)


def _verdict(config: Config, rule: CompiledRule, divert: str) -> Verdict:
    if not rule.by_packet:
        return Goto(divert)
    outbound = config.outbound(rule.outbound)
    if outbound == _PLAIN_DIRECT:
        return Goto(DIRECT)
    if not isinstance(outbound, RejectOutbound):
        return Goto(divert)
    if outbound.answer == "drop":
        return Drop()
    return Goto(REFUSE if outbound.answer == "tcp-reset" else REFUSE_ICMP)


def _nft_rules(
    rule: CompiledRule,
    verdict: Verdict,
    families: Sequence[Family],
    carried: tuple[Protocol, ...],
) -> Iterator[NftRule]:
    protocols = rule.protocols
    if not rule.by_packet:
        # What no listener sees goes on to the rules below.
        protocols = tuple(protocol for protocol in carried if _may_be(rule, protocol))
        if not protocols:
            return
    common = _common_matches(rule, protocols)
    name = f"rule-{rule.index}"
    if rule.source is None and rule.destination is None and not rule.destinations:
        yield NftRule(name, verdict, common)
        return
    for family in families:
        addresses = _addresses(rule, family)
        if addresses is not None:
            source, destination = addresses
            matches = (
                *common,
                *address_match("source", source),
                *address_match("destination", destination),
            )
            yield NftRule(f"{name}-{family}", verdict, matches, family)


def _addresses(
    rule: CompiledRule, family: Family
) -> tuple[tuple[Network, ...], tuple[Network, ...]] | None:
    """Source and destination prefixes of one family, ``()`` for any.

    None where the rule asks for addresses of the other family only.
    """
    sides = []
    for networks in (rule.source, rule.destination_networks()):
        members = of_family(networks or (), family)
        if networks is not None and not members:
            return None
        sides.append(members)
    return sides[0], sides[1]


def _common_matches(rule: CompiledRule, protocols: tuple[Protocol, ...]) -> tuple[Match, ...]:
    """The matches that know no family."""
    matches: list[Match] = []
    if rule.interfaces:
        matches.append(InInterface(rule.interfaces))
    if protocols:
        matches.append(Transport(protocols))
    if rule.source_ports:
        matches.append(Ports("source", rule.source_ports))
    if rule.ports:
        matches.append(Ports("destination", rule.ports))
    return tuple(matches)
