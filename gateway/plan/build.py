"""Config and policy, for a machine, as the kernel state we want."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from types import MappingProxyType
from typing import Final, NamedTuple

from gateway.config.outbounds import DirectOutbound, Socks5Outbound
from gateway.config.schema import Config
from gateway.flow import Protocol
from gateway.marks import Mark, Marks
from gateway.plan import chains, filters, routing
from gateway.plan.address_sets import AddressSets, by_family
from gateway.plan.addresses import Family, Network
from gateway.plan.capture import capture_routes, capture_rules, neighbour_routes
from gateway.plan.capture_plan import planned_capture
from gateway.plan.conditions import Packets
from gateway.plan.egress import Egress, Entry, entries
from gateway.plan.host import HostFacts
from gateway.plan.matches import InControlGroup, InSet, OwnedBy
from gateway.plan.model import AddressSet, Backend, Chain, IpRule, Plan, Route, RulePlacement
from gateway.plan.placement import all_taken, placements
from gateway.plan.policy_rules import Answers, PolicyChains, policy_chains
from gateway.plan.shape import Shape
from gateway.plan.strategies import egresses, server_addresses
from gateway.plan.tun import tun_shape
from gateway.plan.verdicts import Goto, Queue
from gateway.policy.engine import Policy

_NO_ADDRESSES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({})


def build_plan(
    config: Config,
    policy: Policy,
    host: HostFacts,
    backend: Backend,
    *,
    upstream_addresses: Mapping[str, tuple[str, ...]] = _NO_ADDRESSES,
    workers: int = 1,
) -> Plan:
    """The plan for one machine; the same arguments always give an equal plan.

    ``upstream_addresses``: what the names of SOCKS servers resolve to, by outbound; servers
    given by address need no entry. ``workers``: processes that carry flows. IPv6 is planned only
    where the host has it.
    """
    ways = egresses(config, host, upstream_addresses)
    needed = entries(ways)
    capture, down = planned_capture(config, ways), routing.shift(host)
    shape = replace(
        _shape(config, policy, host, upstream_addresses, _programs(ways, host)),
        hops=backend is Backend.NFTABLES or host.has("iptables-hops"),
        queue=_queue(config, workers),
    )
    if capture is not None:
        shape = replace(shape, lan=(), own=False, captures=True)
    written = _netfilter(config, policy, shape, backend, _bound_to(needed))
    shape, families = written.shape, shape.families
    return Plan(
        backend=backend,
        chains=tuple(_for_families(chain, families) for chain in written.chains),
        sets=written.sets,
        ip_rules=(
            *routing.ip_rules(shape, host),
            *(capture_rules(capture, families, shape.marks, down) if capture else ()),
            *(entry for entry in needed if isinstance(entry, IpRule)),
        ),
        routes=(
            *routing.routes(shape),
            *(neighbour_routes(capture, families) if capture else ()),
            *(capture_routes(capture, families) if capture else ()),
            *(entry for entry in needed if isinstance(entry, Route)),
        ),
        sysctls=(
            *routing.sysctls(config.lan, host),
            *(routing.ping_sysctls(host) if config.inbound.icmp != "direct" else ()),
            *(routing.loose_sysctls(host) if capture else ()),
        ),
        accept_input=written.accept_input,
        accept_forward=written.accept_forward,
        placements=tuple(_placements(config, policy, written)),
    )


class _Netfilter(NamedTuple):
    """What of a plan netfilter carries.

    ``shape``: with what the rules have turned out to need. ``handed_over``: as of
    ``PolicyChains``.
    """

    shape: Shape
    chains: tuple[Chain, ...]
    sets: tuple[AddressSet, ...]
    accept_input: tuple[Mark, ...]
    accept_forward: tuple[Mark, ...]
    handed_over: frozenset[str]


def _netfilter(
    config: Config, policy: Policy, shape: Shape, backend: Backend, devices: Sequence[str]
) -> _Netfilter:
    """``devices``: as of ``filters.unrouted``."""
    sets = AddressSets()
    written = _policies(config, policy, shape, sets)
    policies = [chain for each in written for chain in each.chains]
    shape = replace(shape, marking=any(each.marking for each in written))
    used = {r.verdict.chain for c in policies for r in c.rules if isinstance(r.verdict, Goto)}
    if chains.ASK in used:
        used |= chains.ANSWERED
    else:
        shape = replace(shape, queue=None)
    answers = ((chains.DIVERT, shape.marks.divert), (chains.DIVERT_OWN, shape.marks.divert_own))
    diverted = tuple(mark for name, mark in answers if name in used)
    # What is carried already stays so, whatever the rules say now.
    used |= chains.carrying(shape)
    allowed = config.inbound.host_firewall == "allow"
    through = (shape.marks.tun,) if allowed and shape.tun is not None else ()
    accept = (*diverted, *through) if allowed else ()
    refused = used | filters.REFUSED if shape.queue else used
    # With nftables, other programs' chains are changed themselves (``kernel.host_firewall``).
    in_our_tables = backend is Backend.IPTABLES
    planned = (
        *chains.prerouting(shape, sets),
        *chains.output(shape),
        *policies,
        *chains.answers(shape, used, sets),
        *chains.redirects(shape),
        *filters.refusals(shape, refused, through if in_our_tables else ()),
        *filters.unrouted(shape, devices),
        *(filters.accepted_input(accept) if in_our_tables else ()),
    )
    known = (*chains.alive_sets(shape), *sets.all)
    handed_over = frozenset[str]().union(*(each.handed_over for each in written))
    return _Netfilter(shape, planned, _referred(planned, known), accept, through, handed_over)


def _placements(config: Config, policy: Policy, written: _Netfilter) -> Iterator[RulePlacement]:
    shape = written.shape
    if shape.captures:
        return all_taken(policy, config.tun.name)
    packets = Packets(not shape.lan, shape.families)
    return placements(policy, config, packets, shape.carried, written.handed_over)


def _bound_to(needed: Iterable[Entry]) -> list[str]:
    """The devices on whose links sockets of ours must not look for what has no route."""
    rules = (entry for entry in needed if isinstance(entry, IpRule))
    return list(dict.fromkeys(rule.oif for rule in rules if rule.oif is not None))


def _programs(ways: Iterable[Egress], host: HostFacts) -> tuple[OwnedBy | InControlGroup, ...]:
    """The proxy programs on this machine whose own traffic is not diverted, each once."""
    found: list[OwnedBy | InControlGroup] = []
    for way in ways:
        if way.uid is not None:
            found.append(OwnedBy("uid", (way.uid,)))
        if way.cgroup is not None:
            found.append(InControlGroup(way.cgroup, host.cgroups[way.cgroup]))
    return tuple(dict.fromkeys(found))


def _shape(
    config: Config,
    policy: Policy,
    host: HostFacts,
    resolved: Mapping[str, tuple[str, ...]],
    programs: tuple[OwnedBy | InControlGroup, ...],
) -> Shape:
    families = (Family.V4, Family.V6) if host.has("ipv6") else (Family.V4,)
    rules = list(policy.every_rule)
    outbounds = [config.outbound(rule.outbound) for rule in rules if rule.outbound]
    upstreams = _lan_upstreams(config, host, resolved)
    return Shape(
        marks=Marks(config.marks.base),
        port=config.inbound.port,
        tproxy=config.inbound.tcp == "tproxy",
        fail_open=config.inbound.on_failure == "open",
        lan=config.lan.interfaces,
        own=config.lan.this_machine,
        families=families,
        upstreams=by_family(upstreams, families),
        udp=config.inbound.udp == "tproxy",
        owner_marks=tuple(dict.fromkeys(rule.mark for rule in rules if rule.mark is not None)),
        preserve_source=any(isinstance(o, DirectOutbound) and o.preserve_source for o in outbounds),
        programs=programs,
        otherwise=_otherwise(config, families),
        tun=tun_shape(config, families),
    )


def _queue(config: Config, workers: int) -> Queue | None:
    if config.inbound.classify != "nfqueue":
        return None
    first = config.inbound.queue
    return Queue(first, first + workers - 1, bypass=config.inbound.on_failure == "open")


def _otherwise(config: Config, families: tuple[Family, ...]) -> dict[Family, tuple[Network, ...]]:
    """The subnets whose ``on_failure`` is not the usual one."""
    inbound = config.inbound
    networks = [
        network
        for name, wanted in inbound.on_failure_of.items()
        if wanted != inbound.on_failure
        for network in config.lan.subnets[name]
    ]
    return by_family(networks, families)


def _policies(
    config: Config, policy: Policy, shape: Shape, sets: AddressSets
) -> list[PolicyChains]:
    carried = shape.carried
    lan = Answers(chains.DIVERT, chains.DIVERT, carried)
    if shape.queue is not None:
        lan = Answers(chains.DIVERT, chains.ASK, tuple(Protocol))
    own = Answers(chains.DIVERT_OWN, chains.DIVERT_OWN, carried)
    ways = ((shape.lan, "decide", False, lan), (shape.own, "decide_own", True, own))
    return [
        policy_chains(name, policy, config, Packets(is_own, shape.families), answers, sets)
        for wanted, name, is_own, answers in ways
        if wanted
    ]


def _referred(planned: Iterable[Chain], known: Iterable[AddressSet]) -> tuple[AddressSet, ...]:
    """The sets that some rule refers to."""
    referred = {
        match.name
        for chain in planned
        for rule in chain.rules
        for match in rule.matches
        if isinstance(match, InSet)
    }
    return tuple(known_set for known_set in known if known_set.name in referred)


def _lan_upstreams(
    config: Config, host: HostFacts, resolved: Mapping[str, tuple[str, ...]]
) -> list[Network]:
    """The SOCKS servers that live in the LAN: their own traffic must not be sent to them."""
    lan: list[Network] = [n for networks in config.lan.subnets.values() for n in networks]
    lan += [
        a.network for i in host.interfaces if i.name in config.lan.interfaces for a in i.addresses
    ]
    addresses = [
        address
        for name, outbound in config.outbounds.items()
        if isinstance(outbound, Socks5Outbound)
        for address in map(ip_address, server_addresses(name, outbound, resolved))
    ]
    inside = {a for a in addresses if any(a in network for network in lan)}
    return [ip_network(a) for a in sorted(inside, key=str)]


def _for_families(chain: Chain, families: tuple[Family, ...]) -> Chain:
    """On a host without IPv6, rules for both families are rules for IPv4."""
    if Family.V6 in families:
        return chain
    return replace(chain, rules=tuple(replace(rule, family=Family.V4) for rule in chain.rules))
