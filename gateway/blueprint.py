"""All that a data plane is made of, as a value that another process can be sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, NamedTuple

from gateway.facts import FactSources
from gateway.groups.standing import Standing
from gateway.icmp.limits import UNBOUNDED, EchoSettings
from gateway.inbound.queue import Judgement
from gateway.kernel.privilege import Capability
from gateway.kernel.tun import TunSettings
from gateway.marks import Mark
from gateway.plan.addresses import Network
from gateway.policy.engine import Policy
from gateway.routing import FlowTimeouts, OwnTraffic
from gateway.sniffing import SniffLimits
from gateway.udp.flow import UdpSettings

#: Makes an ``Outbound``, given ``reactor`` and ``factory`` of the process that will use it.
Recipe = partial[Any]


class Safety(NamedTuple):
    """What keeps the gateway's own packets out of its diversion.

    All are always on; the lab alone turns them off, one by one, to show the loop that
    each prevents. ``prove``: what the guard has refused is not used.
    """

    mark: bool = True
    detect: bool = True
    prove: bool = True


GUARDED: Final = Safety()


class ListenOn(NamedTuple):
    """Where a data plane listens, and how flows are diverted to it.

    ``udp``: datagrams, too. ``congestion``: TCP congestion control towards the LAN, where it
    is not the system's. ``tun``: the device, where some protocol reaches us by one, such as
    datagrams, with ``udp_by_tun``.
    """

    mode: Literal["tproxy", "redirect", "tun"]
    port: int
    ipv6: bool
    udp: bool = False
    congestion: str | None = None
    tun: TunSettings | None = None
    udp_by_tun: bool = False


@dataclass(frozen=True, slots=True)
class Blueprint:
    """One configuration, compiled and proved, without anything that only the parent needs.

    ``capabilities`` are what it takes; a process that carries flows and does nothing else
    gives up all others.
    ``groups``: how they stand; their members are among the outbounds.
    ``fakes``: prefixes of addresses that stand for names.
    ``judgement``: how packet queues decide; None where there are none.
    """

    policy: Policy
    outbounds: Mapping[str, Recipe]
    timeouts: FlowTimeouts
    sniff: SniffLimits
    udp: UdpSettings
    own: OwnTraffic
    listen_on: ListenOn
    bypass: Mark | None
    detect_loops: bool
    log_level: str
    log_format: Literal["text", "json"]
    facts: FactSources
    fakes: tuple[Network, ...] = ()
    capabilities: frozenset[Capability] = frozenset()
    judgement: Judgement | None = None
    groups: Mapping[str, Standing] = field(default_factory=dict)
    echo: EchoSettings = UNBOUNDED
