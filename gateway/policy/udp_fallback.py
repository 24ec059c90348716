"""Rules whose outbound carries no UDP, said otherwise: what their datagrams get instead.

The engine and the kernel's plan both read rules; this writes them anew before either does,
so that both say the same, and the kernel refuses what is to be refused by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from gateway.decision import DIRECT, REJECT
from gateway.flow import Protocol
from gateway.policy.engine import Policy
from gateway.policy.rule import CompiledRule

#: HTTP/3. Whoever meets a closed port there tries TCP at once.
QUIC_PORT = 443


def without_udp(policy: Policy, unable: frozenset[str]) -> Policy:
    """The policy where these outbounds carry no UDP.

    Port 443 is refused, so that browsers go on over TCP; the rest gets what the rule's
    ``udp_fallback`` says.
    """
    if not unable:
        return policy
    return policy.rewritten(lambda rules: _rewritten(rules, unable))


def _rewritten(rules: tuple[CompiledRule, ...], unable: frozenset[str]) -> Iterator[CompiledRule]:
    for rule in rules:
        if rule.outbound in unable and _may_be_udp(rule):
            yield from _instead(rule)
        else:
            yield rule


def _instead(rule: CompiledRule) -> Iterable[CompiledRule]:
    datagrams = replace(rule, protocols=(Protocol.UDP,))
    refused = replace(
        datagrams,
        outbound=REJECT,
        part="udp",
        text=f"{rule.text} (carries no UDP: refused)",
    )
    if rule.udp_fallback == "reject" or (rule.is_catch_all and rule.udp_fallback == "next"):
        return refused, rule
    quic = replace(
        refused, ports=((QUIC_PORT, QUIC_PORT),), part="quic", text=f"{rule.text} (QUIC: refused)"
    )
    refusals = (quic,) if _covers(rule, QUIC_PORT) else ()
    if rule.udp_fallback == "direct":
        text = f"{rule.text} (carries no UDP: direct)"
        direct = replace(datagrams, outbound=DIRECT, part="udp", text=text)
        return *refusals, direct, rule
    others = tuple(p for p in rule.protocols or Protocol if p is not Protocol.UDP)
    return *refusals, *((replace(rule, protocols=others),) if others else ())


def _may_be_udp(rule: CompiledRule) -> bool:
    return not rule.protocols or Protocol.UDP in rule.protocols


def _covers(rule: CompiledRule, port: int) -> bool:
    return not rule.ports or any(first <= port <= last for first, last in rule.ports)
