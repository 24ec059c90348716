"""Config and policy, for a machine, as the kernel state we want."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from types import MappingProxyType
from typing import Final

from gateway.config.schema import Config, DirectOutbound, Socks5Outbound
from gateway.marks import Marks
from gateway.plan import chains, routing
from gateway.plan.chains import Shape
from gateway.plan.egress import Egress, egresses, entries, server_addresses
from gateway.plan.host import HostFacts
from gateway.plan.model import (
    AddressSet,
    Backend,
    Chain,
    Family,
    Goto,
    InControlGroup,
    InSet,
    IpRule,
    Network,
    OwnedBy,
    Plan,
    Route,
)
from gateway.plan.policy_rules import address_sets, of_family, placement, policy_chain, prefix_lists
from gateway.policy.engine import Policy

_NO_ADDRESSES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({})


def build_plan(
    config: Config,
    policy: Policy,
    host: HostFacts,
    backend: Backend,
    *,
    upstream_addresses: Mapping[str, tuple[str, ...]] = _NO_ADDRESSES,
) -> Plan:
    """The plan for one machine; the same arguments always give an equal plan.

    ``upstream_addresses``: what the names of SOCKS servers resolve to, by outbound; servers
    given by address need no entry. IPv6 is planned only where the host has it.
    """
    ways = egresses(config, host, upstream_addresses)
    needed = entries(ways)
    shape = _shape(config, policy, host, upstream_addresses, _programs(ways, host))
    policies = _policies(config, policy, shape)
    used = {r.verdict.chain for c in policies for r in c.rules if isinstance(r.verdict, Goto)}
    answers = ((chains.DIVERT, shape.marks.divert), (chains.DIVERT_OWN, shape.marks.divert_own))
    diverted = tuple(mark for name, mark in answers if name in used)
    accept = diverted if config.inbound.host_firewall == "allow" else ()
    planned = [
        *chains.prerouting(shape),
        *chains.output(shape),
        *policies,
        *chains.answers(shape, used),
        *chains.redirects(shape),
        *chains.refusals(shape, used),
        *(chains.accepted_input(accept) if backend is Backend.IPTABLES else ()),
    ]
    return Plan(
        backend=backend,
        chains=tuple(_for_families(chain, shape.families) for chain in planned),
        sets=_sets(policy, shape, planned),
        ip_rules=(
            *routing.ip_rules(shape, host),
            *(entry for entry in needed if isinstance(entry, IpRule)),
        ),
        routes=(
            *routing.routes(shape),
            *(entry for entry in needed if isinstance(entry, Route)),
        ),
        sysctls=routing.sysctls(config.lan, host),
        accept_input=accept,
        placements=tuple(placement(rule, config) for rule in policy.every_rule),
    )


def _programs(ways: Iterable[Egress], host: HostFacts) -> tuple[OwnedBy | InControlGroup, ...]:
    """The proxy programs on this machine whose own traffic is not diverted, each once."""
    found: list[OwnedBy | InControlGroup] = []
    for way in ways:
        if way.uid is not None:
            found.append(OwnedBy(way.uid))
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
    outbounds = [config.outbound(rule.outbound) for rule in policy.every_rule if rule.outbound]
    upstreams = _lan_upstreams(config, host, resolved)
    return Shape(
        marks=Marks(config.marks.base),
        port=config.inbound.port,
        tproxy=config.inbound.tcp == "tproxy",
        fail_open=config.inbound.on_failure == "open",
        lan=config.lan.interfaces,
        own=config.lan.this_machine,
        families=families,
        upstreams={f: members for f in families if (members := of_family(upstreams, f))},
        udp=config.inbound.udp == "tproxy",
        preserve_source=any(isinstance(o, DirectOutbound) and o.preserve_source for o in outbounds),
        programs=programs,
    )


def _policies(config: Config, policy: Policy, shape: Shape) -> list[Chain]:
    planned = []
    if shape.lan:
        rules = policy.rules
        planned.append(policy_chain("decide", rules, config, shape.families, chains.DIVERT))
    if shape.own:
        # What this machine sends has not arrived on any interface.
        rules = tuple(rule for rule in policy.rules if not rule.interfaces)
        planned.append(policy_chain("decide_own", rules, config, shape.families, chains.DIVERT_OWN))
    return planned


def _sets(policy: Policy, shape: Shape, planned: list[Chain]) -> tuple[AddressSet, ...]:
    """The sets that some rule refers to."""
    lists = (*prefix_lists(policy.rules, shape.families), *shape.upstreams.values())
    referred = {
        match.name
        for chain in planned
        for rule in chain.rules
        for match in rule.matches
        if isinstance(match, InSet)
    }
    known = (*chains.alive_sets(shape), *address_sets(lists))
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
