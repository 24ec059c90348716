"""Packet marks, policy-routing numbers and tags: every number that others could collide with.

A mark is always a value *and* a mask: other programs (mesh VPNs, containers,
multi-WAN) own other bits of the same 32, and we never touch theirs. We own one
nibble; ``base`` is its lowest bit.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_BASE = 0x0100_0000

#: ip rules we add have priorities in this range, in the order of the ladder below; where others
#: stand before it, the ladder moves in front of them (``gateway.plan.routing``).
PRIORITY_FIRST = 8800
PRIORITY_LAST = 8899

#: ``goto`` over the diversion: reverse-path validation looks a client up with the mark of the
#: packet and ``iif lo``; were it to meet the local default below, every client would be a martian
#: wherever another program sets ``src_valid_mark`` (Documentation/networking/ip-sysctl.rst).
PRIORITY_VALIDATE = 8800
PRIORITY_DIVERT = 8801
PRIORITY_DIVERT_OWN = 8802
#: What is marked for the TUN: by the interface it came in on, so that reverse-path validation
#: never meets the rule. And what this machine sends from the device's own address.
PRIORITY_TUN = 8804
PRIORITY_NOP = 8809

#: Our own sockets that are bound to an uplink's address: to that uplink's table, or nowhere.
PRIORITY_SOURCE = 8810
PRIORITY_SOURCE_END = 8811

#: Our own sockets that are bound to a device, where none of all rules has found a route: Linux
#: would assume the destination to be on that link. A route that says so is found instead, and
#: tagged, so that it can be refused.
PRIORITY_UNROUTED = 32_800
REALM_UNROUTED = 0x67

#: Beside a TUN that captures: the way past it for our own sockets, which ends in ``unreachable``
#: (a lost default route must not lead into the TUN), and then everybody else's way into it.
PRIORITY_BYPASS_UID = 8820
PRIORITY_BYPASS_MAIN = 8821
PRIORITY_BYPASS_DEFAULT = 8822
PRIORITY_BYPASS_END = 8823
PRIORITY_NEAR = 8830
PRIORITY_CAPTURE = 8831

TABLE_TPROXY = 8801
#: Everything, for what is led into the TUN by its mark or its source.
TABLE_TUN = 8802
#: What the TUN takes by routing, whoever sends it.
TABLE_CAPTURE = 8803
#: Those that lead to ourselves: no packet of ours may meet them, nor a rule of anybody else's.
DIVERTING_TABLES = frozenset({TABLE_TPROXY, TABLE_TUN, TABLE_CAPTURE})
#: The first of the uplinks' tables, for ``route: source``; one for each uplink that is so used.
TABLE_UPLINKS = 8810
#: For ``PRIORITY_UNROUTED``; one for each device.
TABLES_UNROUTED = range(8850, 9000)
#: rt_tables of iproute2.
TABLE_DEFAULT = 253
TABLE_MAIN = 254

#: Metrics of a route to an upstream alone, and of the ``unreachable`` one that stands behind it
#: and takes over at once where its link goes down.
METRIC_HOST_ROUTE = 88
METRIC_UNREACHABLE = 8888

#: ``rtm_protocol`` of every route and rule that is ours (rtnetlink(7)); found again by it alone.
ROUTE_PROTOCOL = 0x67

NFT_TABLE = "gateway"
CHAIN_PREFIX = "GATEWAY_"
SET_PREFIX = "gw_"
TAG_PREFIX = "gateway:"

DEFAULT_TCP_PORT = 7895


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark under a mask, as ``fwmark VALUE/MASK`` of ip-rule(8) means it."""

    value: int
    mask: int

    def __post_init__(self) -> None:
        if self.value & ~self.mask:
            raise ValueError(f"mark {self.value:#x} has bits outside its mask {self.mask:#x}")

    @property
    def keep(self) -> int:
        """The bits of a packet's mark that setting this one must leave alone."""
        return ~self.mask & 0xFFFF_FFFF

    def __str__(self) -> str:
        return f"{self.value:#010x}/{self.mask:#010x}"


@dataclass(frozen=True, slots=True)
class Marks:
    """The values of our nibble; compared under the whole mask, so they never overlap."""

    base: int = DEFAULT_BASE

    def _mark(self, number: int) -> Mark:
        return Mark(self.base * number, self.mask)

    @property
    def mask(self) -> int:
        """The nibble as a mask."""
        return self.base * 0xF

    @property
    def divert(self) -> Mark:
        """LAN packets that go to a listener."""
        return self._mark(1)

    @property
    def bypass(self) -> Mark:
        """Our own sockets: never diverted."""
        return self._mark(2)

    @property
    def direct(self) -> Mark:
        """Connmark of a flow that was decided direct: it stays direct until it ends."""
        return self._mark(3)

    @property
    def tun(self) -> Mark:
        """Packets that go to the TUN."""
        return self._mark(4)

    @property
    def divert_own(self) -> Mark:
        """Packets of this machine that go to a listener (looped over ``lo`` first).

        Apart from ``divert`` because its ip rule has ``iif lo``, which must never
        match the divert mark (see ``PRIORITY_VALIDATE``).
        """
        return self._mark(5)

    @property
    def refuse(self) -> Mark:
        """Packets that rules reject with a TCP reset (ICMP where there is no TCP)."""
        return self._mark(6)

    @property
    def refuse_icmp(self) -> Mark:
        """Packets that rules reject with an ICMP error, TCP included."""
        return self._mark(7)

    @property
    def undecided(self) -> Mark:
        """Packets on their way through rules that take several chains."""
        return self._mark(8)

    @property
    def held(self) -> Mark:
        """The same, where the conditions of the rule that is tried hold."""
        return self._mark(9)
