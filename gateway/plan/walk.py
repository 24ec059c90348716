"""What the chains of a plan do to the first packet of a flow, rule by rule, as the kernel would.

The kernel is not asked, and nothing is sent: the plan's values say it all. What of a packet is
not known makes a match neither true nor false; such a rule is taken for one that does not
match, and the walk says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from typing import Final, Literal

from gateway.flow import Endpoint, FlowFacts, Owner
from gateway.marks import Mark, Marks
from gateway.plan.addresses import Family, Network
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
from gateway.plan.model import AddressSet, Chain, NftRule, Plan
from gateway.plan.verdicts import (
    Accept,
    Drop,
    Goto,
    Jump,
    Queue,
    Redirect,
    Reject,
    Return,
    SetMark,
    Tproxy,
    Verdict,
)
from gateway.policy.prefixes import address_number
from gateway.policy.sets.networks import CompactNetworks


class Fate(StrEnum):
    """What becomes of the packet. The values stand in the JSON: do not rename them."""

    DIVERTED = "diverted"
    ASKED = "asked"
    DIRECT = "direct"
    REFUSED = "refused"
    DROPPED = "dropped"
    LEFT_ALONE = "left-alone"


#: Where an address is, as the kernel's route lookup says.
AddressType = Literal["unicast", "local", "broadcast", "multicast"]


@dataclass(frozen=True, slots=True)
class Hop:
    """A netfilter rule that matched, or that may have (``doubt``: what is not known)."""

    chain: str
    rule: str
    action: str
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class Walk:
    """The rules that the packet met, in order, and its fate.

    ``rule``: the netfilter rule that stands for one of the owner's, if one decided.
    """

    hops: tuple[Hop, ...]
    fate: Fate
    rule: str = ""


#: The hooks on the way of a packet that arrives to be forwarded, and of one that is sent here.
_WAYS: Final = {
    False: (("prerouting", "mangle"), ("prerouting", "nat"), ("forward", "filter")),
    True: (("output", "mangle"), ("output", "nat"), ("output", "filter")),
}

_ENDS: Final[dict[type[Verdict], Fate]] = {
    Drop: Fate.DROPPED,
    Tproxy: Fate.DIVERTED,
    Redirect: Fate.DIVERTED,
    Reject: Fate.REFUSED,
    Queue: Fate.ASKED,
}


def walk(plan: Plan, marks: Marks, facts: FlowFacts, destination_type: AddressType) -> Walk:
    """The way of the first packet of a flow through a plan's chains.

    ``facts.interface`` empty: this machine sends it. Dead-man sets are taken to be alive.
    """
    return _Walker(plan, facts, destination_type).walk(marks)


@dataclass(slots=True)
class _Walker:
    plan: Plan
    facts: FlowFacts
    destination_type: AddressType
    mark: int = 0
    connmark: int = 0
    end: Fate | None = None
    hops: list[Hop] = field(default_factory=list)

    def walk(self, marks: Marks) -> Walk:
        for way in _WAYS[not self.facts.interface]:
            for chain in self._hooked(*way):
                if self.end is None:
                    self._chain(chain)
            if any(map(self._carries, (marks.divert, marks.divert_own, marks.tun))):
                self.end = self.end or Fate.DIVERTED
        fate = self.end
        if fate is None and self.connmark & marks.mask == marks.direct.value:
            fate = Fate.DIRECT
        names = [hop.rule for hop in self.hops if not hop.doubt and _is_owners(hop.rule)]
        return Walk(tuple(self.hops), fate or Fate.LEFT_ALONE, names[-1] if names else "")

    def _hooked(self, point: str, table: str) -> Iterator[Chain]:
        for chain in self.plan.chains:
            if chain.hook is not None and (chain.hook.point, chain.hook.table) == (point, table):
                yield chain

    def _carries(self, mark: Mark) -> bool:
        return self.mark & mark.mask == mark.value

    def _chain(self, chain: Chain) -> bool:
        """Go through a chain; whether the packet may go on behind the rule that led here."""
        for rule in chain.rules:
            if not self._matches(chain, rule):
                continue
            self.hops.append(Hop(chain.name, rule.name, _action(rule.verdict)))
            match rule.verdict:
                case Goto(name):
                    return self._chain(self._named(name))
                case Jump(name):
                    if not self._chain(self._named(name)):
                        return False
                case Return():
                    return True
                case SetMark(mark, of):
                    self._set(mark, of)
                case Drop() | Tproxy() | Redirect() | Reject() | Queue():
                    self.end = _ENDS[type(rule.verdict)]
                    return False
                case Accept():
                    return False
        return True

    def _named(self, name: str) -> Chain:
        return next(chain for chain in self.plan.chains if chain.name == name)

    def _set(self, mark: Mark, of: str) -> None:
        if of == "packet":
            self.mark = self.mark & mark.keep | mark.value
        else:
            self.connmark = self.connmark & mark.keep | mark.value

    def _matches(self, chain: Chain, rule: NftRule) -> bool:
        family = Family.V6 if ":" in self.facts.source.host else Family.V4
        if rule.family not in (None, family):
            return False
        unknown = ""
        for match in rule.matches:
            held = self._holds(match)
            if held is False:
                return False
            if held is None:
                unknown = unknown or str(match)
        if unknown:
            self.hops.append(Hop(chain.name, rule.name, _action(rule.verdict), unknown))
        return not unknown

    def _holds(self, match: Match) -> bool | None:
        facts = self.facts
        match match:
            case InInterface(names):
                return facts.interface in names
            case OutInterface() | OfRealm():
                return False  # of our own sockets
            case Transport(protocols):
                return facts.protocol in protocols
            case Addresses(side, prefixes):
                return _inside(self._end(side), prefixes)
            case InSet(side, name, negate):
                return self._in_set(side, name) != negate
            case Ports(side, ranges):
                return any(low <= self._end(side).port <= high for low, high in ranges)
            case MarkIs(mark, of, negate):
                value = self.mark if of == "packet" else self.connmark
                return (value & mark.mask == mark.value) != negate
            case DestinationType(types):
                return self.destination_type in types
            case ReplyDirection() | TransparentSocket():
                return False  # of an established flow
            case LastHop():
                return False  # of one that looks for the way
            case Untracked():
                return False  # of neighbour discovery, which is no flow
            case _:
                return self._sent_as(match)

    def _sent_as(self, match: FromMac | WithDscp | OwnedBy | InControlGroup) -> bool | None:
        """By what is not in the addresses of a packet."""
        facts = self.facts
        match match:
            case FromMac(addresses):
                return self._known(facts.mac, not facts.interface, addresses)
            case WithDscp(values):
                return self._known(facts.dscp, False, values)
            case OwnedBy(kind, ids):
                owner = getattr(facts.owner or Owner(), kind)
                return self._known(owner, bool(facts.interface), ids)
            case InControlGroup(path):
                group = (facts.owner or Owner()).cgroup
                inside = group is not None and f"{group}/".startswith(f"{path}/")
                return self._known(group, bool(facts.interface), (group,) if inside else ())

    @staticmethod
    def _known(fact: object, never: bool, wanted: Sequence[object]) -> bool | None:
        """Whether a fact is as wanted; None where it is not known."""
        if never:
            return False
        return None if fact is None else fact in wanted

    def _end(self, side: Literal["source", "destination"]) -> Endpoint:
        return self.facts.source if side == "source" else self.facts.destination

    def _in_set(self, side: Literal["source", "destination"], name: str) -> bool:
        found: AddressSet = next(each for each in self.plan.sets if each.name == name)
        return _inside(self._end(side), found.elements)


def _is_owners(name: str) -> bool:
    return name.startswith("rule-")


def _inside(endpoint: Endpoint, prefixes: Collection[Network]) -> bool:
    if isinstance(prefixes, CompactNetworks):
        return prefixes.has(address_number(endpoint.host))
    address = ip_address(endpoint.host)
    return any(address in prefix for prefix in prefixes)


def _action(verdict: Verdict) -> str:
    match verdict:
        case Goto(chain) | Jump(chain):
            return f"to {chain}"
        case SetMark(mark, of):
            return f"{'mark' if of == 'packet' else 'connmark'} {mark}"
        case Tproxy(port):
            return f"tproxy to port {port}"
        case Redirect(port):
            return f"redirect to port {port}"
        case Reject(answer):
            return f"reject with {answer}"
        case _:
            return type(verdict).__name__.lower()
