"""Chains that refuse packets by their marks, and that let ours past a host firewall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from gateway.flow import Protocol
from gateway.marks import REALM_UNROUTED, Mark
from gateway.plan.addresses import Family
from gateway.plan.hooks import hooked
from gateway.plan.matches import MarkIs, OfRealm, OutInterface, Transport
from gateway.plan.model import Chain, NftRule
from gateway.plan.policy_rules import REFUSE, REFUSE_ICMP
from gateway.plan.shape import Shape
from gateway.plan.verdicts import Accept, Reject

REFUSED: Final = frozenset({REFUSE, REFUSE_ICMP})

_TCP: Final = Transport((Protocol.TCP,))


def refusals(shape: Shape, used: set[str], through: Sequence[Mark] = ()) -> list[Chain]:
    """Answers to refused packets: REJECT works in forward and output only, so marks lead there.

    ``through``: forwarded past a host firewall in the same tables, as ``accepted_input``.
    """
    rules = []
    if REFUSE in used:
        refused = MarkIs(shape.marks.refuse)
        rules += [
            NftRule("tcp", Reject("tcp-reset"), (_TCP, refused)),
            NftRule("other", Reject("icmp-port-unreachable"), (refused,)),
        ]
    if REFUSE_ICMP in used:
        refused = MarkIs(shape.marks.refuse_icmp)
        rules.append(NftRule("icmp", Reject("icmp-admin-prohibited"), (refused,)))
    forward = [NftRule("through", Accept(), (MarkIs(mark),)) for mark in through] + rules
    points: list[tuple[Literal["forward", "output"], list[NftRule]]] = []
    if forward and (shape.lan or shape.captures):
        points.append(("forward", forward))
    if rules and shape.own:
        points.append(("output", rules))
    return [hooked(f"filter_{point}", point, "filter", inside) for point, inside in points]


def unrouted(shape: Shape, devices: Sequence[str]) -> list[Chain]:
    """Own packets that leave by a device without a route are refused at once."""
    rules = [
        NftRule(
            f"unrouted-{device}",
            Reject("icmp-admin-prohibited"),
            (OutInterface((device,)), MarkIs(shape.marks.bypass), OfRealm(REALM_UNROUTED)),
            Family.V4,
        )
        for device in devices
    ]
    return [hooked("filter_unrouted", "output", "filter", rules)] if rules else []


def accepted_input(marks: Sequence[Mark]) -> list[Chain]:
    """Diverted packets past a host firewall in the same tables (iptables only).

    They keep their original destination port, so no port rule of the firewall fits them.
    """
    rules = [NftRule(f"accept-{mark.value:#x}", Accept(), (MarkIs(mark),)) for mark in marks]
    return [hooked("filter_input", "input", "filter", rules)] if rules else []
