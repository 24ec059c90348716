"""A plan as one nftables transaction: the text for ``nft -f`` (nft(8))."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, assert_never

from gateway.flow import Protocol
from gateway.marks import NFT_TABLE, Mark
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
from gateway.plan.model import AddressSet, Chain, Hook, NftRule, Plan
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
from gateway.policy.sets.networks import texts

#: Removes the table, whether or not it is there: ``delete`` of one that is not there fails, so it
#: is made first (nft(8); ``destroy`` is newer).
REMOVE: Final = f"table inet {NFT_TABLE} {{\n}}\ndelete table inet {NFT_TABLE}\n"

_KEYWORD: Final = {Family.V4: "ip", Family.V6: "ip6"}
_ADDRESS_TYPE: Final = {Family.V4: "ipv4_addr", Family.V6: "ipv6_addr"}
_LISTENER: Final = {Family.V4: "ip to 127.0.0.1", Family.V6: "ip6 to [::1]"}
_ICMP: Final = {
    Family.V4: ["icmp"],
    Family.V6: ["ipv6-icmp"],
    None: ["icmp", "ipv6-icmp"],
}
_SIDE: Final = {"source": "s", "destination": "d"}
_REJECT: Final = {
    "tcp-reset": "tcp reset",
    "icmp-port-unreachable": "icmpx port-unreachable",
    "icmp-admin-prohibited": "icmpx admin-prohibited",
}


def render_nft(plan: Plan) -> str:
    """The whole text; it replaces what an earlier plan left, in the same transaction."""
    if not plan.chains:
        return REMOVE
    return f"{REMOVE}\n{_table([*map(_set, plan.sets), *map(_chain, plan.chains)])}"


def render_set(address_set: AddressSet) -> str:
    """One set, beside what is in the table already."""
    return _table([_set(address_set)])


def render_chains(plan: Plan) -> str:
    """All chains, for a table that has the plan's sets and no chain."""
    return _table([*map(_chain, plan.chains)])


def _table(blocks: Sequence[str]) -> str:
    body = "\n\n".join(blocks)
    return f"table inet {NFT_TABLE} {{\n{body}\n}}\n"


def _set(address_set: AddressSet) -> str:
    lines = [f"type {_ADDRESS_TYPE[address_set.family]}"]
    if address_set.timeout_s is None:
        lines.append("flags interval")
    else:
        lines += ["flags interval,timeout", f"timeout {address_set.timeout_s}s"]
    elements = ",\n".join(f"\t\t\t{element}" for element in texts(address_set.elements))
    lines.append(f"elements = {{\n{elements}\n\t\t}}")
    return _block(f"set {address_set.name}", lines)


def _chain(chain: Chain) -> str:
    lines = [_hook(chain.hook)] if chain.hook else []
    return _block(f"chain {chain.name}", [*lines, *map(_rule, chain.rules)])


def _block(head: str, lines: Iterable[str]) -> str:
    return "\n".join([f"\t{head} {{", *(f"\t\t{line}" for line in lines), "\t}"])


def _hook(hook: Hook) -> str:
    kind = "nat" if hook.table == "nat" else "filter"
    if (hook.table, hook.point) == ("mangle", "output"):
        kind = "route"
    return f"type {kind} hook {hook.point} priority {hook.priority}; policy accept;"


def _rule(rule: NftRule) -> str:
    parts = [_match(match, rule.family) for match in rule.matches]
    if rule.family and not any(isinstance(m, Addresses | InSet) for m in rule.matches):
        parts.insert(0, f"meta nfproto {rule.family}")
    return " ".join([*parts, _verdict(rule.verdict, rule.family), f'comment "{rule.tag}"'])


def _match(match: Match, family: Family | None) -> str:  # noqa: C901 - a case a type
    match match:
        case InInterface(names):
            quoted = (f'"{name}"' for name in names)
            return f"iifname {_any_of(quoted)}"
        case OutInterface(names):
            quoted = (f'"{name}"' for name in names)
            return f"oifname {_any_of(quoted)}"
        case OfRealm(realm):
            return f"rt classid {realm}"
        case Transport(protocols):
            return f"meta l4proto {_any_of(_protocols(protocols, family))}"
        case Addresses(side, prefixes):
            return f"{_keyword(family)} {_SIDE[side]}addr {_any_of(map(str, prefixes))}"
        case InSet(side, name, negate):
            return f"{_keyword(family)} {_SIDE[side]}addr {'!= ' if negate else ''}@{name}"
        case Ports(side, ranges):
            ports = (str(low) if low == high else f"{low}-{high}" for low, high in ranges)
            return f"th {_SIDE[side]}port {_any_of(ports)}"
        case FromMac(addresses):
            return f"ether saddr {_any_of(addresses)}"
        case WithDscp(values):
            return f"{_keyword(family)} dscp {_any_of(map(str, values))}"
        case LastHop():
            return "ip6 hoplimit 1" if family is Family.V6 else "ip ttl 1"
        case OwnedBy(kind, ids):
            return f"meta sk{kind} {_any_of(map(str, ids))}"
        case MarkIs(mark, of, negate):
            equals = "!=" if negate else "=="
            return f"{_mark(of)} & {mark.mask:#010x} {equals} {mark.value:#010x}"
        case DestinationType(types):
            return f"fib daddr type {_any_of(types)}"
        case ReplyDirection():
            return "ct direction reply"
        case Untracked():
            return "ct state untracked"
        case TransparentSocket():
            # A listener on the wildcard address is another program's: it would take from the
            # LAN all connections to its port, wherever they go.
            return "socket transparent 1 socket wildcard 0"
        case InControlGroup(path):
            return f'socket cgroupv2 level {path.count("/") + 1} "{path}"'
        case _:
            assert_never(match)


def _verdict(verdict: Verdict, family: Family | None) -> str:
    """The statement; those that decide about a packet count it, for ``gateway status``."""
    match verdict:
        case Count():
            return "counter"
        case Log(prefix):
            return f'limit rate 10/second log prefix "{prefix}"'
        case Drop():
            return "counter drop"
        case Accept() | Return():
            return type(verdict).__name__.lower()
        case Jump(chain):
            return f"jump {chain}"
        case Goto(chain):
            return f"counter goto {chain}"
        case SetMark(mark, of):
            return f"{_mark(of)} set {_merged(mark, _mark(of))}"
        case Tproxy(port):
            # The mark alone does not end the chain where a listener was found; accept does.
            return f"tproxy {_LISTENER[_known(family)]}:{port} counter accept"
        case Queue(first, last, bypass):
            numbers = str(first) if first == last else f"{first}-{last}"
            return f"counter queue {'flags bypass ' if bypass else ''}to {numbers}"
        case Redirect(port):
            return f"counter redirect to :{port}"
        case Reject(answer):
            return f"counter reject with {_REJECT[answer]}"
        case _:
            assert_never(verdict)


def _any_of(values: Iterable[str]) -> str:
    listed = list(values)
    return listed[0] if len(listed) == 1 else f"{{ {', '.join(listed)} }}"


def _protocols(protocols: Iterable[Protocol], family: Family | None) -> list[str]:
    return [n for p in protocols for n in (_ICMP[family] if p is Protocol.ICMP else [p.value])]


def _mark(of: str) -> str:
    return "meta mark" if of == "packet" else "ct mark"


def _merged(mark: Mark, old: str) -> str:
    kept = f"{old} & {mark.keep:#010x}"
    return f"{kept} | {mark.value:#010x}" if mark.value else kept


def _keyword(family: Family | None) -> str:
    return _KEYWORD[_known(family)]


def _known(family: Family | None) -> Family:
    if family is None:
        raise ValueError("a rule with addresses or tproxy needs a family of its own")
    return family
