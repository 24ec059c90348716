"""A naive netfilter: walks rules as the kernel would, to find what they mean for one packet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

from gateway.flow import FlowFacts, Protocol
from gateway.plan.addresses import Family, Network
from gateway.plan.matches import (
    Addresses,
    FromMac,
    InInterface,
    InSet,
    MarkIs,
    Match,
    OwnedBy,
    Ports,
    Transport,
    WithDscp,
)
from gateway.plan.model import Chain, NftRule
from gateway.plan.verdicts import Drop, Goto, Jump, Log, Return, SetMark
from gateway.plan.xt import XtChain, XtExtension, XtRule

Sets = Mapping[str, Sequence[Network]]


def family_of(packet: FlowFacts) -> Family:
    return Family.V6 if ":" in packet.source.host else Family.V4


@dataclass
class Walker:
    """One packet on its way: the chain of an answer that it is sent to ends it, or ``drop``."""

    packet: FlowFacts
    sets: Sets
    mark: int = 0
    end: str = ""

    def chain(self, chains: Mapping[str, Sequence[NftRule]], name: str) -> None:
        if name not in chains:
            self.end = name
            return None
        for rule in chains[name]:
            if self.end or not self._matches(rule):
                continue
            match rule.verdict:
                case Goto(to):
                    return self.chain(chains, to)
                case Jump(to):
                    self.chain(chains, to)
                case Return():
                    return None
                case SetMark(mark):
                    self.mark = self.mark & mark.keep | mark.value
                case Log():
                    pass
                case other:
                    assert isinstance(other, Drop)
                    self.end = "drop"
        return None

    def _matches(self, rule: NftRule) -> bool:
        return rule.family in (None, family_of(self.packet)) and all(
            (self.mark & match.mark.mask == match.mark.value) != match.negate
            if isinstance(match, MarkIs)
            else _holds(match, self.packet, self.sets)
            for match in rule.matches
        )

    def xt_chain(self, chains: Mapping[str, Sequence[XtRule]], name: str) -> None:
        if name not in chains:
            self.end = name.removeprefix("GATEWAY_").lower()
            return None
        for rule in chains[name]:
            if self.end or not self._xt_matches(rule):
                continue
            if rule.goto:
                return self.xt_chain(chains, rule.target.name)
            match rule.target.name:
                case "RETURN":
                    return None
                case "MARK":
                    value, mask = _numbers(rule.target)
                    self.mark = self.mark & ~mask | value
                case "LOG":
                    pass
                case "DROP":
                    self.end = "drop"
                case to:
                    assert to in chains
                    self.xt_chain(chains, to)
        return None

    def _xt_matches(self, rule: XtRule) -> bool:
        marks = [match for match in rule.matches if match.name == "mark"]
        others = tuple(match for match in rule.matches if match.name != "mark")
        for match in marks:
            value, mask = _numbers(match)
            if (self.mark & mask == value) == match.options[0].negate:
                return False
        return _xt_holds(replace(rule, matches=others), self.packet, self.sets)


def _numbers(extension: XtExtension) -> list[int]:
    """Value and mask of an option."""
    return [int(number, 16) for number in extension.options[0].values[0].split("/")]


def walk(chains: Iterable[Chain], start: str, packet: FlowFacts, sets: Sets) -> str:
    """The chain of an answer that the packet is sent to, or ``drop``."""
    walker = Walker(packet, sets)
    walker.chain({c.name: c.rules for c in chains if c.name.startswith(start)}, start)
    assert walker.end, "the packet fell through"
    return walker.end


def walk_xt(chains: Iterable[XtChain], start: str, packet: FlowFacts, sets: Sets) -> str:
    """The same for xtables' rules."""
    walker = Walker(packet, sets)
    walker.xt_chain({c.name: c.rules for c in chains if c.name.startswith(start)}, start)
    assert walker.end, "the packet fell through"
    return walker.end


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
