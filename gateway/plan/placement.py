"""Where each rule of the owner is decided, and why there; for ``gateway plan``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final, Literal

from gateway.config.groups import stands_for
from gateway.config.outbounds import DirectOutbound, Group, RejectOutbound, Socks5Outbound
from gateway.config.schema import Config
from gateway.flow import Protocol
from gateway.plan.address_sets import AddressSets
from gateway.plan.conditions import NEVER, Packets, Test, doubts, split
from gateway.plan.matches import Transport
from gateway.plan.model import RulePlacement
from gateway.policy.engine import Policy
from gateway.policy.rule import CompiledRule

Place = tuple[Literal["kernel", "listener", "both"], str]

_PLAIN_DIRECT: Final = DirectOutbound(type="direct")


def placements(
    policy: Policy,
    config: Config,
    packets: Packets,
    carried: tuple[Protocol, ...],
    handed_over: Collection[str],
) -> Iterator[RulePlacement]:
    """Every rule in the order of the file, those of lists behind the others.

    ``carried``: the protocols that listeners take. ``handed_over``: texts of the rules that
    nest too deep for the kernel.
    """
    for rules in (policy.rules, *policy.lists.values()):
        yield from _List(config, packets, carried, handed_over).placements(rules)


def all_taken(policy: Policy, device: str) -> Iterator[RulePlacement]:
    """Those of a configuration whose TUN takes by routes, which ask no rule."""
    for rule in policy.every_rule:
        yield RulePlacement(
            rule.index, rule.text, "listener", f"routes lead into {device}, and ask no rule"
        )


class _List:
    """One list of rules, read from its start; remembers what has left the kernel on the way."""

    def __init__(
        self,
        config: Config,
        packets: Packets,
        carried: tuple[Protocol, ...],
        too_deep: Collection[str],
    ) -> None:
        self._config = config
        self._packets = packets
        self._carried = carried
        self._too_deep = too_deep
        self._handed_over: dict[Protocol, str] = {}

    def placements(self, rules: Sequence[CompiledRule]) -> Iterator[RulePlacement]:
        for rule in rules:
            yield RulePlacement(rule.index, rule.text, *self._place(rule))

    def _place(self, rule: CompiledRule) -> Place:
        test, others = split(rule, self._packets, AddressSets())
        if test == NEVER:
            return "kernel", "never matches: it asks for what no packet here has"
        its = _protocols(test)
        left = tuple(protocol for protocol in its if protocol not in self._handed_over)
        if not left:
            return (
                "listener",
                f"all that it may match is handed over by {self._handed_over[its[0]]}",
            )
        keys = doubts(others)
        too_deep = rule.text in self._too_deep
        if not keys and not too_deep:
            return self._known(rule, left)
        handed = tuple(protocol for protocol in left if protocol in self._carried)
        passing = tuple(protocol for protocol in left if protocol not in self._carried)
        reason = f"the kernel cannot know {_and(keys)}: it hands over what may match"
        if too_deep:
            reason = "nested too deep for the kernel: it hands over what may match"
        if passing:
            reason += f"; {_upper(passing)}: not asked, goes on to the next rule"
        if not handed:
            why = "nested too deep" if too_deep else f"the kernel cannot know {_and(keys)}"
            return "kernel", f"{why}, and carries no {_upper(passing)}"
        if _asks_protocols_alone(test) and len(others.parts) == 1 and keys:
            name = rule.text.partition(" ")[0]
            self._handed_over |= dict.fromkeys(handed, name)
            return "listener", reason
        return "both", reason

    def _known(self, rule: CompiledRule, its: tuple[Protocol, ...]) -> Place:
        if rule.goto:
            return "kernel", f"leads to the list {rule.goto} there"
        outbound = stands_for(self._config, rule.outbound)
        if outbound == _PLAIN_DIRECT:
            return "kernel", "routed on, never enters the gateway"
        if isinstance(outbound, RejectOutbound):
            answer = "icmp" if rule.part else outbound.answer
            return "kernel", f"refused there ({answer})"
        carried = tuple(protocol for protocol in its if protocol in self._carried)
        lost = tuple(protocol for protocol in its if protocol not in self._carried)
        not_carried = f"{_upper(lost)}: routed on, not proxied"
        if not carried:
            return "kernel", not_carried
        diverted = _upper(carried)
        reason = f"the kernel diverts {diverted}, the listener connects through {rule.outbound}"
        if isinstance(outbound, Group):
            reason += f", a group ({outbound.type}): how its members are is not for the kernel"
        if Protocol.ICMP in carried and isinstance(outbound, Socks5Outbound):
            pretends = self._config.inbound.icmp == "pretend"
            does = "answered by the gateway itself" if pretends else "refused"
            reason += f"; ICMP: {does}, as SOCKS5 carries none"
        return "both", f"{reason}; {not_carried}" if lost else reason


def _protocols(test: Test) -> tuple[Protocol, ...]:
    """Those that the test lets through, any family's."""
    for match in test.variants[0].matches:
        if isinstance(match, Transport):
            return match.protocols
    return tuple(Protocol)


def _asks_protocols_alone(test: Test) -> bool:
    return all(isinstance(m, Transport) for variant in test.variants for m in variant.matches)


def _and(words: Sequence[str]) -> str:
    return " and ".join(words)


def _upper(protocols: Sequence[Protocol]) -> str:
    return _and([protocol.upper() for protocol in protocols])
