"""Reads the machine: interfaces, default routes, sysctls, and what its firewalls can do.

Nothing is changed: nftables is asked in a transaction that is not committed, iptables in a
network namespace that exists for the question alone.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_interface
from typing import Any, Final, Literal

from pyroute2 import IPRoute

from gateway.errors import ApplyError, CapabilityError
from gateway.kernel import iptables, libnftables, sysctl
from gateway.kernel.children import undisturbed
from gateway.kernel.iptables_job import Request
from gateway.kernel.iptables_worker import present_tables
from gateway.kernel.privilege import Capability, has
from gateway.kernel.resolvers import read_resolvers
from gateway.marks import CHAIN_PREFIX, ROUTE_PROTOCOL, SET_PREFIX, TABLE_MAIN, TAG_PREFIX
from gateway.plan.addresses import Family
from gateway.plan.host import DefaultRoute, Feature, HostFacts, Interface
from gateway.plan.xt import XtChain, XtExtension, XtOption, XtRule, XtTable

_FAMILIES: Final[dict[int, Literal["ipv4", "ipv6"]]] = {2: "ipv4", 10: "ipv6"}
_IFF_UP = 1
_IFF_NOARP = 0x80
_RTPROT_RA = 9
_RT_SCOPE_UNIVERSE = 0
# IFA_F_* of <linux/if_addr.h>.
_IFA_F_TEMPORARY = 0x01
_IFA_FLEETING = _IFA_F_TEMPORARY | 0x08 | 0x20 | 0x40  # DADFAILED, DEPRECATED, TENTATIVE

#: A rule each, in a chain that is never committed.
_NFT_RULES = {
    "nftables": "meta mark set meta mark & 0xf0ffffff accept",
    "nft-tproxy": "meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:1 accept",
    "nft-socket": "meta l4proto tcp socket transparent 1 accept",
    "nft-fib": "fib daddr type local accept",
}
_NFT_QUEUE = {"nft-queue": "queue to 1"}
_XT_PLAIN = (
    XtRule(
        tag=f"{TAG_PREFIX}probe",
        target=XtExtension("MARK", (XtOption("set-xmark", ("0x0/0x0",)),)),
        matches=(XtExtension("addrtype", (XtOption("dst-type", ("LOCAL",)),)),),
    ),
)
_XT_TPROXY = (
    XtRule(
        tag=f"{TAG_PREFIX}probe",
        target=XtExtension("TPROXY", (XtOption("on-port", ("1",)),)),
        matches=(XtExtension("socket", (XtOption("transparent"),)),),
        protocol="tcp",
    ),
)
_XT_HOPS: Final = {
    family: XtRule(
        tag=f"{TAG_PREFIX}probe",
        target=XtExtension("RETURN"),
        matches=(XtExtension(name, (XtOption(f"{name}-eq", ("1",)),)),),
    )
    for family, name in ((Family.V4, "ttl"), (Family.V6, "hl"))
}
_XT_QUEUE = (
    XtRule(
        tag=f"{TAG_PREFIX}probe",
        target=XtExtension("NFQUEUE", (XtOption("queue-num", ("1",)),)),
    ),
)
_SAVE_COMMANDS = {Family.V4: "iptables-legacy-save", Family.V6: "ip6tables-legacy-save"}
_POLICY_DROP = re.compile(r":\S+ DROP ")


def probe_host(
    wanted: Literal["auto", "iptables", "nftables", "all"] = "all",
    *,
    nfqueue: bool = False,
    known: Mapping[str, Feature] | None = None,
) -> HostFacts:
    """One reading of the machine, for plans, the loop guard and ``gateway doctor``.

    ``wanted`` is ``inbound.backend``: what the choice of a backend does not depend on is
    then not looked for, which saves most of the second that this takes. ``nfqueue``: look for
    what packet queues take, too. ``known``: the firewalls' features, where they have been looked
    for before. Without the privilege to look, there are none. Call from a thread that runs no
    event loop.
    """
    with IPRoute() as netlink:
        interfaces = _interfaces(netlink)
        names = {interface.index: interface.name for interface in interfaces}
        default_routes = tuple(
            _default_route(message, names)
            for family in _FAMILIES
            for message in netlink.get_default_routes(family=family, table=TABLE_MAIN)
            if message["proto"] != ROUTE_PROTOCOL
        )
        first_rule = _first_foreign_rule(netlink)
    ipv6, privileged = _ipv6(), has(Capability.NET_ADMIN)
    if known is None:
        known = _firewalls(wanted, ipv6.available, nfqueue=nfqueue) if privileged else {}
    return HostFacts(
        interfaces=interfaces,
        default_routes=default_routes,
        features={**known, "ipv6": ipv6},
        sysctls=sysctl.read_matching(sysctl.PLANNED),
        first_rule=first_rule,
        group=os.getegid(),
        resolvers=read_resolvers(),
        privileged=privileged,
    )


def _firewalls(
    wanted: Literal["auto", "iptables", "nftables", "all"], ipv6: bool, *, nfqueue: bool
) -> dict[str, Feature]:
    features: dict[str, Feature] = {}
    rules = _NFT_RULES | (_NFT_QUEUE if nfqueue else {})
    if wanted != "iptables":
        features |= {name: _nft_feature(rule) for name, rule in rules.items()}
    if wanted in ("auto", "all"):
        features["legacy-rules"] = _legacy_rules()
    nftables_will_do = wanted == "nftables" or (
        wanted == "auto"
        and all(features[name].available for name in rules)
        and not features["legacy-rules"].available
    )
    if not nftables_will_do:
        features["ipset"] = _ipset()
        features |= _iptables(ipv6, nfqueue=nfqueue)
    if nfqueue:
        features["netfilterqueue"] = _package("netfilterqueue")
    return features


def _interfaces(netlink: IPRoute) -> tuple[Interface, ...]:
    addresses: dict[int, list[IPv4Interface | IPv6Interface]] = {}
    lasting: dict[int, list[IPv4Address | IPv6Address]] = {}
    for message in netlink.get_addr():
        # IFA_ADDRESS is the peer's on a point-to-point link; IPv6 has no IFA_LOCAL there.
        address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        found = ip_interface(f"{address}/{message['prefixlen']}")
        addresses.setdefault(message["index"], []).append(found)
        flags = message.get_attr("IFA_FLAGS") or message["flags"]
        # Secondary addresses of IPv4 have the flag that temporary ones of IPv6 have.
        fleeting = _IFA_FLEETING if found.version == 6 else _IFA_FLEETING & ~_IFA_F_TEMPORARY
        if not flags & fleeting and message["scope"] == _RT_SCOPE_UNIVERSE:
            lasting.setdefault(message["index"], []).append(found.ip)
    return tuple(
        Interface(
            name=link.get_attr("IFLA_IFNAME"),
            index=link["index"],
            up=bool(link["flags"] & _IFF_UP),
            addresses=tuple(addresses.get(link["index"], ())),
            lasting=tuple(lasting.get(link["index"], ())),
            has_arp=not link["flags"] & _IFF_NOARP,
        )
        for link in netlink.get_links()
    )


def _default_route(message: Any, names: dict[int, str]) -> DefaultRoute:
    # Of a multipath route the first way counts.
    hops = message.get_attr("RTA_MULTIPATH")
    hop = hops[0] if hops else message
    index = hop["oif"] if hops else message.get_attr("RTA_OIF")
    via = hop.get_attr("RTA_VIA") or {}
    return DefaultRoute(
        family=_FAMILIES[message["family"]],
        interface=names.get(index, ""),
        via=hop.get_attr("RTA_GATEWAY") or via.get("addr"),
        from_ra=message["proto"] == _RTPROT_RA,
        metric=message.get_attr("RTA_PRIORITY") or 0,
    )


def _first_foreign_rule(netlink: IPRoute) -> int | None:
    priorities = (
        rule.get_attr("FRA_PRIORITY")
        for family in _FAMILIES
        for rule in netlink.get_rules(family=family)
        if rule.get_attr("FRA_PROTOCOL") != ROUTE_PROTOCOL
    )
    return min((priority for priority in priorities if priority), default=None)


def _ipv6() -> Feature:
    disabled = sysctl.read("net.ipv6.conf.lo.disable_ipv6")
    if disabled is None:
        return Feature(False, "this kernel has no IPv6")
    if disabled != "0":
        return Feature(False, "net.ipv6.conf.lo.disable_ipv6 is set: ::1 cannot be listened on")
    return Feature(True, "on")


def _nft_feature(rule: str) -> Feature:
    table = (
        f"table inet {SET_PREFIX}probe {{\n chain probe {{\n"
        f"  type filter hook prerouting priority -155; policy accept;\n  {rule}\n }}\n}}\n"
    )
    try:
        libnftables.run(table, dry_run=True)
    except (ApplyError, CapabilityError) as error:
        return Feature(False, " ".join(str(error).split()))
    return Feature(True, "the kernel takes the rule")


def _legacy_rules() -> Feature:
    """Rules and policies of others in legacy tables; looking does not create the tables."""
    found = []
    for family, command in _SAVE_COMMANDS.items():
        if not present_tables(family):
            continue
        try:
            text = _output(command)
        except (OSError, subprocess.CalledProcessError) as error:
            return Feature(False, f"legacy tables are loaded, but {command} failed: {error}")
        rules = [
            line
            for line in text.splitlines()
            if (line.startswith("-A") and CHAIN_PREFIX not in line) or _POLICY_DROP.match(line)
        ]
        found += [f"{len(rules)} in {family}"] if rules else []
    return Feature(bool(found), ", ".join(found) or "none")


def _ipset() -> Feature:
    scratch = ("unshare", "--net", "ipset", "create", f"{SET_PREFIX}probe", "hash:net")
    try:
        _output(*(scratch if has(Capability.SYS_ADMIN) else ("ipset", "list", "-name")))
    except FileNotFoundError:
        return Feature(False, "ipset is not installed")
    except subprocess.CalledProcessError as error:
        return Feature(False, error.stderr.strip())
    return Feature(True, "a set can be made")


def _package(name: str) -> Feature:
    found = find_spec(name) is not None
    return Feature(found, f"the Python package is {'' if found else 'not '}installed")


def _iptables(ipv6: bool, *, nfqueue: bool) -> dict[str, Feature]:
    families = [Family.V4, Family.V6] if ipv6 else [Family.V4]
    if not has(Capability.SYS_ADMIN):
        # No namespace to try rules in; loading the library is all that can be tried.
        loaded = _tried([Request(family, "read") for family in families])
        names = ("iptables", "iptables-tproxy", "iptables-hops", "iptables-nfqueue")
        return dict.fromkeys(names, loaded)
    usual = _XT_PLAIN + _XT_TPROXY
    # One attempt where the kernel has everything, as most have.
    plain = tproxy = hops = _tried([_scratch(f, (*usual, _XT_HOPS[f])) for f in families])
    if not hops.available:
        plain = tproxy = _tried([_scratch(family, usual) for family in families])
    if not tproxy.available:
        plain = _tried([_scratch(family, _XT_PLAIN) for family in families])
    features = {"iptables": plain, "iptables-tproxy": tproxy, "iptables-hops": hops}
    if nfqueue:
        features["iptables-nfqueue"] = _tried([_scratch(family, _XT_QUEUE) for family in families])
    return features


def _scratch(family: Family, rules: tuple[XtRule, ...]) -> Request:
    chain = XtChain(f"{CHAIN_PREFIX}PROBE", rules, "PREROUTING")
    return Request(family, "apply", (XtTable("mangle", (chain,)),), scratch=True)


def _tried(requests: list[Request]) -> Feature:
    errors = [reply.error for reply in iptables.run(requests) if reply.error]
    return Feature(not errors, "; ".join(errors) or "the kernel takes the rules, v4 and v6")


def _output(*command: str) -> str:
    with undisturbed():
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
