"""A plan in the terms of xtables: what iptables(8) can say in one rule.

Both users of this module, the text renderer and the python-iptables worker,
take the rules as they stand here, so each translation exists once. xtables says
less in a rule than a plan does (one interface, one protocol, one prefix, fifteen
ports), hence one planned rule may become several, all with its tag.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Final, Literal, assert_never

from gateway.flow import Protocol
from gateway.marks import CHAIN_PREFIX, TAG_PREFIX
from gateway.plan.addresses import Family
from gateway.plan.matches import (
    Addresses,
    DestinationType,
    FromMac,
    InControlGroup,
    InInterface,
    InSet,
    LastHop,
    MarkIs,
    Match,
    OfRealm,
    OutInterface,
    OwnedBy,
    Ports,
    ReplyDirection,
    TransparentSocket,
    Transport,
    Untracked,
    WithDscp,
)
from gateway.plan.model import Chain, NftRule, Plan
from gateway.plan.verdicts import (
    Accept,
    Count,
    Drop,
    Goto,
    Jump,
    Log,
    Queue,
    Redirect,
    Reject,
    Return,
    SetMark,
    Tproxy,
    Verdict,
)

TableName = Literal["mangle", "nat", "filter"]

#: Slots of one multiport match; a range takes two (iptables-extensions(8)).
MULTIPORT_SLOTS: Final = 15
#: Tables are changed in this order; the chains of ``mangle`` set the marks that the others read.
TABLES: Final[tuple[TableName, ...]] = ("filter", "nat", "mangle")

LOOPBACK: Final = {Family.V4: "127.0.0.1", Family.V6: "::1"}
_ICMP: Final = {Family.V4: "icmp", Family.V6: "icmpv6"}
_REJECT: Final = {
    Family.V4: {
        "tcp-reset": "tcp-reset",
        "icmp-port-unreachable": "icmp-port-unreachable",
        "icmp-admin-prohibited": "icmp-admin-prohibited",
    },
    Family.V6: {
        "tcp-reset": "tcp-reset",
        "icmp-port-unreachable": "icmp6-port-unreachable",
        "icmp-admin-prohibited": "icmp6-adm-prohibited",
    },
}
_SIDE: Final = {"source": "src", "destination": "dst"}


@dataclass(frozen=True, slots=True)
class XtOption:
    """One long option of an extension: ``[!] --name values...``; a flag has no values."""

    name: str
    values: tuple[str, ...] = ()
    negate: bool = False


@dataclass(frozen=True, slots=True)
class XtExtension:
    """A match (``-m name``) or a target (``-j name``) with its options."""

    name: str
    options: tuple[XtOption, ...] = ()


@dataclass(frozen=True, slots=True)
class XtRule:
    """One rule. Empty ``protocol``, interfaces, ``source``, ``destination`` match all.

    The tag is not among ``matches``: it is written as the last one, ``-m comment
    --comment TAG``. ``goto``: the target is a chain entered by ``-g``, not ``-j``.
    """

    tag: str
    target: XtExtension
    goto: bool = False
    matches: tuple[XtExtension, ...] = ()
    protocol: str = ""
    in_interface: str = ""
    out_interface: str = ""
    source: str = ""
    destination: str = ""


@dataclass(frozen=True, slots=True)
class XtChain:
    """A chain of ours; ``hook`` is the built-in chain whose first rule is to be ``jump``."""

    name: str
    rules: tuple[XtRule, ...]
    hook: str = ""

    @property
    def jump(self) -> XtRule:
        """The rule that leads from the built-in chain here; only where there is a hook."""
        return XtRule(tag=f"{TAG_PREFIX}jump-{self.name.lower()}", target=XtExtension(self.name))


@dataclass(frozen=True, slots=True)
class XtTable:
    """The chains of one table that are ours, in the order of the plan."""

    name: TableName
    chains: tuple[XtChain, ...]


def xt_tables(plan: Plan, family: Family) -> tuple[XtTable, ...]:
    """The tables of one family; none at all where no rule of the plan is for that family."""
    if not any(rule.family in (None, family) for chain in plan.chains for rule in chain.rules):
        return ()
    tables = (
        XtTable(name, tuple(_chain(c, family) for c in plan.chains if c.table == name))
        for name in TABLES
    )
    return tuple(table for table in tables if table.chains)


def chain_name(name: str) -> str:
    """The name that iptables shows for a chain of the plan."""
    return CHAIN_PREFIX + name.upper()


def _chain(chain: Chain, family: Family) -> XtChain:
    return XtChain(
        name=chain_name(chain.name),
        rules=tuple(
            xt_rule
            for rule in chain.rules
            if rule.family in (None, family)
            for xt_rule in _rules(rule, family)
        ),
        hook=chain.hook.point.upper() if chain.hook else "",
    )


def _rules(rule: NftRule, family: Family) -> Iterator[XtRule]:
    target, goto = _target(rule.verdict, family)
    bare = XtRule(tag=rule.tag, target=target, goto=goto)
    if isinstance(rule.verdict, Log):
        bare = replace(bare, matches=(_extension("limit", "limit", "10/second"),))
    for combination in product(*(_alternatives(match, family) for match in rule.matches)):
        made = bare
        for part in combination:
            made = _with(made, part)
        yield made


#: A match's contribution to a rule: a field of the rule itself, or an extension.
_Field = Literal["protocol", "in_interface", "out_interface", "source", "destination"]
_Part = tuple[_Field, str] | XtExtension


def _with(rule: XtRule, part: _Part) -> XtRule:
    if isinstance(part, XtExtension):
        return replace(rule, matches=(*rule.matches, part))
    field, value = part
    # One literal keyword each, so that the type checker sees what is set.
    match field:
        case "protocol":
            return replace(rule, protocol=value)
        case "in_interface":
            return replace(rule, in_interface=value)
        case "out_interface":
            return replace(rule, out_interface=value)
        case "source":
            return replace(rule, source=value)
        case "destination":
            return replace(rule, destination=value)


def _alternatives(match: Match, family: Family) -> list[_Part]:  # noqa: C901 - a case a type
    """What one match becomes: any one of these, each in a rule of its own."""
    match match:
        case InInterface(names):
            return [("in_interface", name) for name in names]
        case OutInterface(names):
            return [("out_interface", name) for name in names]
        case OfRealm(realm):
            return [_extension("realm", "realm", f"{realm:#x}")]
        case Transport(protocols):
            return [("protocol", _protocol(p, family)) for p in protocols]
        case Addresses(side, prefixes):
            return [(side, str(prefix)) for prefix in prefixes]
        case InSet(side, name, negate):
            return [_extension("set", "match-set", name, _SIDE[side], negate=negate)]
        case Ports(side, ranges):
            option = "sports" if side == "source" else "dports"
            return [_extension("multiport", option, ports) for ports in _multiport(ranges)]
        case FromMac(addresses):
            return [_extension("mac", "mac-source", address) for address in addresses]
        case WithDscp(values):
            return [_extension("dscp", "dscp", f"{value:#04x}") for value in values]
        case LastHop():
            name = "hl" if family is Family.V6 else "ttl"
            return [_extension(name, f"{name}-eq", "1")]
        case OwnedBy(kind, ids):
            return [_extension("owner", f"{kind}-owner", str(number)) for number in ids]
        case MarkIs(mark, of, negate):
            name = "mark" if of == "packet" else "connmark"
            return [_extension(name, "mark", str(mark), negate=negate)]
        case DestinationType(types):
            return _destination_types(types, family)
        case ReplyDirection():
            return [_extension("conntrack", "ctdir", "REPLY")]
        case Untracked():
            return [_extension("conntrack", "ctstate", "UNTRACKED")]
        case TransparentSocket():
            # Without --nowildcard, listeners on the wildcard address are left out.
            return [_extension("socket", "transparent")]
        case InControlGroup(path):
            return [_extension("cgroup", "path", path)]
        case _:
            assert_never(match)


def _extension(name: str, option: str, *values: str, negate: bool = False) -> XtExtension:
    return XtExtension(name, (XtOption(option, values, negate),))


def _protocol(protocol: Protocol, family: Family) -> str:
    return _ICMP[family] if protocol is Protocol.ICMP else protocol.value


def _destination_types(types: tuple[str, ...], family: Family) -> list[_Part]:
    if family is Family.V4:
        return [_extension("addrtype", "dst-type", ",".join(t.upper() for t in types))]
    # In IPv6 there is no broadcast (EINVAL), and several types in one match are
    # ANDed where IPv4 ORs them (match_type6() in net/netfilter/xt_addrtype.c).
    return [_extension("addrtype", "dst-type", t.upper()) for t in types if t != "broadcast"]


def _multiport(ranges: tuple[tuple[int, int], ...]) -> Iterator[str]:
    slots = 0
    ports: list[str] = []
    for low, high in ranges:
        needed = 1 if low == high else 2
        if slots + needed > MULTIPORT_SLOTS:
            yield ",".join(ports)
            slots, ports = 0, []
        slots += needed
        ports.append(str(low) if low == high else f"{low}:{high}")
    yield ",".join(ports)


def _target(verdict: Verdict, family: Family) -> tuple[XtExtension, bool]:
    """The target, and whether it is entered by ``-g``."""
    match verdict:
        case Count():
            # Every rule counts; python-iptables cannot commit one without a target, so this
            # one sets no bit of the mark.
            return _extension("MARK", "set-xmark", "0x0/0x0"), False
        case Log(prefix):
            return _extension("LOG", "log-prefix", prefix), False
        case Accept() | Drop() | Return():
            return XtExtension(type(verdict).__name__.upper()), False
        case Jump(chain):
            return XtExtension(chain_name(chain)), False
        case Goto(chain):
            return XtExtension(chain_name(chain)), True
        case SetMark(mark, of):
            name = "MARK" if of == "packet" else "CONNMARK"
            return _extension(name, "set-xmark", str(mark)), False
        case Tproxy(port):
            options = (XtOption("on-port", (str(port),)), XtOption("on-ip", (LOOPBACK[family],)))
            return XtExtension("TPROXY", options), False
        case Queue(first, last, bypass):
            return XtExtension("NFQUEUE", tuple(_queue_options(first, last, bypass))), False
        case Redirect(port):
            return _extension("REDIRECT", "to-ports", str(port)), False
        case Reject(answer):
            return _extension("REJECT", "reject-with", _REJECT[family][answer]), False
        case _:
            assert_never(verdict)


def _queue_options(first: int, last: int, bypass: bool) -> Iterator[XtOption]:
    if first == last:
        yield XtOption("queue-num", (str(first),))
    else:
        yield XtOption("queue-balance", (f"{first}:{last}",))
    if bypass:
        yield XtOption("queue-bypass")
