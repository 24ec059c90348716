"""What a TUN asks of the kernel, where it takes packets of the LAN by their mark.

The mark takes the place of TPROXY's: whoever decides a packet is the same, and so is what the
kernel decides alone. A flow's connmark keeps it on its way whatever the rules say later, or
what the TUN takes by routing then.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final, Literal

from gateway.config.schema import Config
from gateway.flow import Protocol
from gateway.marks import Marks
from gateway.plan.addresses import Family, Network
from gateway.plan.matches import Addresses, InInterface, MarkIs, ReplyDirection, Transport
from gateway.plan.model import Chain, NftRule
from gateway.plan.verdicts import Drop, Goto, Return, SetMark

_GUARD: Final = "guard"
_FROM_TUN: Final = "from_tun"


@dataclass(frozen=True, slots=True)
class TunShape:
    """The device that takes ``protocols``; ``networks`` are those of its own ``addresses``.

    ``senders``: the interfaces that packets with its mark come in by.
    """

    device: str
    protocols: tuple[Protocol, ...]
    networks: dict[Family, Network]
    addresses: dict[Family, Network]
    senders: tuple[str, ...]

    @property
    def taken(self) -> Transport:
        """What it takes."""
        return Transport(self.protocols)


def tun_shape(config: Config, families: tuple[Family, ...]) -> TunShape | None:
    """None where nothing goes into a TUN."""
    protocols = config.inbound.tunnelled
    if not protocols:
        return None
    v4, v6 = config.tun.ipv4, config.tun.ipv6
    networks: dict[Family, Network] = {Family.V4: v4.network, Family.V6: v6.network}
    addresses = {Family.V4: ip_network(v4.ip), Family.V6: ip_network(v6.ip)}
    own = config.lan.this_machine and not config.tun.by_routing
    return TunShape(
        config.tun.name,
        protocols,
        {family: networks[family] for family in families},
        {family: addresses[family] for family in families},
        (*config.lan.interfaces, *(("lo",) if own else ())),
    )


def arrivals(tun: TunShape, marks: Marks) -> tuple[list[NftRule], list[Chain]]:
    """The first rules for ``prerouting``, and their chains.

    What comes out of the device belongs to flows that stay with it, even where the far end
    speaks first. Nobody else may talk to the device's addresses, nor as one of them: to the
    kernel, each address of this machine is as good as another, on whatever interface.
    """
    rules = [NftRule("from-tun", Goto(_FROM_TUN), (InInterface((tun.device,)),))]
    sides: tuple[Literal["destination", "source"], ...] = ("destination", "source")
    for family, network in tun.networks.items():
        rules += [
            NftRule(f"{side}-{family}", Goto(_GUARD), (Addresses(side, (network,)),), family)
            for side in sides
        ]
    own = NftRule("own", Return(), (InInterface(("lo",)),))
    # The packet's mark is for firewalls of others, which let it through by that.
    mark = NftRule("mark", SetMark(marks.tun))
    keep = NftRule("keep", SetMark(marks.tun, "connection"))
    return rules, [
        Chain(_FROM_TUN, "mangle", (mark, keep)),
        Chain(_GUARD, "mangle", (own, NftRule("spoofed", Drop()))),
    ]


def kept(tun: TunShape, marks: Marks) -> list[NftRule]:
    """Flows that are in the TUN stay there, be it a reply or not; so do ICMP errors about them."""
    taken = Transport(tuple(p for p in Protocol if p in (*tun.protocols, Protocol.ICMP)))
    match = (taken, MarkIs(marks.tun, "connection"))
    return [
        NftRule("tunnelled", SetMark(marks.tun), match),
        NftRule("keep-tunnelled", Return(), match),
    ]


def unknown(tun: TunShape, marks: Marks) -> list[NftRule]:
    """Where ICMP is taken, so are protocols that no outbound carries: the TUN refuses them.

    Else they would be routed on to their destinations, past the proxy.
    """
    if Protocol.ICMP not in tun.protocols:
        return []
    return [
        NftRule("known", Return(), (Transport(tuple(Protocol)),)),
        NftRule("unknown", SetMark(marks.tun)),
    ]


def past(tun: TunShape, marks: Marks, *, own: bool) -> list[NftRule]:
    """Beside a TUN that takes by routes: answers to what came from outside leave as it came.

    By themselves they would follow the routes into the device. What the device has answered is
    no such thing, be it a reply or not, and stays there where the routes have changed: what is
    not this machine's ``own``, by its mark.
    """
    stay = kept(tun, marks)
    leave = NftRule("past", SetMark(marks.bypass), (ReplyDirection(),))
    return [*(stay[-1:] if own else stay), leave]


def enter(tun: TunShape, marks: Marks) -> list[NftRule]:
    """Mark a packet for the device, and its flow."""
    return [
        NftRule("tun", SetMark(marks.tun), (tun.taken,)),
        NftRule("keep-tun", SetMark(marks.tun, "connection"), (tun.taken,)),
    ]
