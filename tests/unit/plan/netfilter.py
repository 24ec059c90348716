"""A naive netfilter: walks rules as the kernel would, to find what they mean for one packet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network

from gateway.flow import FlowFacts, Protocol
from gateway.plan.model import (
    Addresses,
    Chain,
    Drop,
    Family,
    FromMac,
    Goto,
    InInterface,
    InSet,
    Log,
    Match,
    Network,
    NftRule,
    OwnedBy,
    Ports,
    Transport,
    WithDscp,
)
from gateway.plan.xt import XtChain, XtExtension, XtRule

Sets = Mapping[str, Sequence[Network]]


def family_of(packet: FlowFacts) -> Family:
    return Family.V6 if ":" in packet.source.host else Family.V4


def walk(chains: Iterable[Chain], start: str, packet: FlowFacts, sets: Sets) -> str:
    """The chain of an answer that the packet is sent to, or ``drop``."""
    by_name = {chain.name: chain.rules for chain in chains if chain.name.startswith(start)}
    chain = start
    while chain in by_name:
        chain = _walk_one(by_name[chain], packet, sets)
    return chain


def _walk_one(rules: Iterable[NftRule], packet: FlowFacts, sets: Sets) -> str:
    for rule in rules:
        if rule.family in (None, family_of(packet)) and all(
            _holds(match, packet, sets) for match in rule.matches
        ):
            if isinstance(rule.verdict, Goto):
                return rule.verdict.chain
            if not isinstance(rule.verdict, Log):
                assert isinstance(rule.verdict, Drop)
                return "drop"
    raise AssertionError("the packet fell through")


def walk_xt(chains: Iterable[XtChain], start: str, packet: FlowFacts, sets: Sets) -> str:
    """The same for xtables' rules."""
    by_name = {chain.name: chain.rules for chain in chains if chain.name.startswith(start)}
    chain = start
    while chain in by_name:
        chain = _walk_one_xt(by_name[chain], packet, sets)
    return chain.removeprefix("GATEWAY_").lower()


def _walk_one_xt(rules: Iterable[XtRule], packet: FlowFacts, sets: Sets) -> str:
    for rule in rules:
        if _xt_holds(rule, packet, sets) and rule.target.name != "LOG":
            if not rule.goto:
                assert rule.target.name == "DROP"
            return rule.target.name
    raise AssertionError("the packet fell through")


def _holds(match: Match, packet: FlowFacts, sets: Sets) -> bool:
    match match:
        case InInterface(names):
            return packet.interface in names
        case Transport(protocols):
            return packet.protocol in protocols
        case Addresses(side, prefixes):
            return _inside(side, packet, prefixes)
        case InSet(side, name, negate):
            return _inside(side, packet, sets[name]) != negate
        case Ports(side, ranges):
            assert packet.protocol in ("tcp", "udp"), "ports are read of TCP and UDP only"
            port = getattr(packet, side).port
            return any(low <= port <= high for low, high in ranges)
        case FromMac(addresses):
            return packet.mac in addresses
        case WithDscp(values):
            return packet.dscp in values
        case OwnedBy(kind, ids):
            return packet.owner is not None and getattr(packet.owner, kind) in ids
    raise AssertionError(f"no rule of the owner has {match}")


def _inside(side: str, packet: FlowFacts, prefixes: Iterable[Network]) -> bool:
    return any(ip_address(getattr(packet, side).host) in prefix for prefix in prefixes)


def _xt_holds(rule: XtRule, packet: FlowFacts, sets: Sets) -> bool:
    protocol = (
        "icmpv6"
        if (packet.protocol, family_of(packet))
        == (
            Protocol.ICMP,
            Family.V6,
        )
        else packet.protocol.value
    )
    return (
        rule.protocol in ("", protocol)
        and rule.in_interface in ("", packet.interface)
        and all(
            not value or _matches_text(side, value, packet)
            for side, value in (("source", rule.source), ("destination", rule.destination))
        )
        and all(_xt_match(match, packet, sets) for match in rule.matches)
    )


def _matches_text(side: str, value: str, packet: FlowFacts) -> bool:
    return _inside(side, packet, [ip_network(value)])


def _xt_match(match: XtExtension, packet: FlowFacts, sets: Sets) -> bool:
    (option,) = match.options
    match match.name, option.name:
        case "set", "match-set":
            name, direction = option.values
            side = "source" if direction == "src" else "destination"
            return _inside(side, packet, sets[name]) != option.negate
        case "multiport", "sports" | "dports":
            assert packet.protocol in ("tcp", "udp"), "multiport needs -p tcp or udp"
            side = "source" if option.name == "sports" else "destination"
            port = getattr(packet, side).port
            bounds = [text.split(":") for text in option.values[0].split(",")]
            return any(int(b[0]) <= port <= int(b[-1]) for b in bounds)
        case "mac", "mac-source":
            return packet.mac == option.values[0]
        case "dscp", "dscp":
            return packet.dscp == int(option.values[0], 16)
        case "owner", "uid-owner" | "gid-owner":
            return (
                packet.owner is not None
                and str(getattr(packet.owner, option.name[:3])) == (option.values[0])
            )
        case "limit", _:
            return True
    raise AssertionError(f"no rule of the owner has {match}")
