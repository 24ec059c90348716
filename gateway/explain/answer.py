"""What would become of a flow: the plan's chains, the owner's rules and the kernel's routes.

Blocks: the kernel's routing tables are asked. Call from a thread without an event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Final, Literal

from gateway.assembly import Assembly
from gateway.clock import WeekClock
from gateway.config.groups import stands_for
from gateway.config.outbounds import (
    DirectOutbound,
    LoadBalanceGroup,
    RejectOutbound,
    Socks5Outbound,
)
from gateway.config.rule_values import DAY
from gateway.decision import DIRECT, REJECT, Decision, Undecided
from gateway.explain.question import Question, QuestionError, ask, device_facts, read_moment
from gateway.flow import FlowFacts, Protocol
from gateway.groups.report import GroupRecord
from gateway.groups.standing import balanced_by, by_weight
from gateway.kernel.guard import Finding, judge
from gateway.kernel.lookup import forwarding, look_up
from gateway.kernel.neighbours import ask_kernel
from gateway.marks import Mark
from gateway.plan.capture_plan import taken
from gateway.plan.egress import Egress, family_of
from gateway.plan.walk import AddressType, Fate, Hop, Walk, walk
from gateway.policy.demands import week_time
from gateway.policy.engine import Outcome, Step

#: Where the gateway itself asks the owner's rules.
_DECIDED_HERE: Final = (Fate.DIVERTED, Fate.ASKED)


@dataclass(frozen=True, slots=True)
class Tried:
    """One of the owner's rules; ``key`` and ``seen`` say why a missed one did not match."""

    rule: str
    outcome: Outcome
    key: str = ""
    seen: str = ""


@dataclass(frozen=True, slots=True)
class Way:
    """How packets leave: by which ``strategy``, the kernel's answer, and the guard's ``proof``."""

    destination: str
    route: str
    mark: str = ""
    strategy: str = ""
    proof: str = ""
    reason: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The member that a group would give the flow to, and why that one."""

    group: str
    type: str
    member: str
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The whole way of one flow. Shown as JSON: do not rename fields.

    ``takes``: the outbound that it takes, ``direct`` also where nobody diverts it, ``reject``
    for every outbound that refuses. ``by`` says who decides that: the ``kernel`` by a rule of
    the owner, the ``listener``, the gateway by the packet ``queue``, or ``nobody`` where no rule
    of the owner is asked. ``groups``: from the outbound that the rule names inwards.
    """

    protocol: str
    source: str
    destination: str
    name: str
    at: str
    interface: str
    backend: str
    netfilter: tuple[Hop, ...]
    fate: Fate
    rules: tuple[Tried, ...]
    takes: str
    by: Literal["kernel", "listener", "queue", "nobody"]
    outbound: str
    rule: str
    groups: tuple[Chosen, ...]
    ways: tuple[Way, ...]
    notes: tuple[str, ...]


def minute_now(assembly: Assembly) -> int:
    """The minute of the week in the configuration's time zone."""
    return WeekClock(assembly.config.time_zone).minute()


def question(assembly: Assembly, words: Mapping[str, str]) -> Question:
    """The question of a person's words: the parameters of ``ask``, ``at`` among them as text.

    Raises ``QuestionError``.
    """
    rest = dict(words)
    source, target, at = (rest.pop(key, "") for key in ("source", "target", "at"))
    known = {"address", "name", "sniffed", "interface", "device"}
    if not source or not target or not rest.keys() <= known:
        raise QuestionError(
            "a flow has a source and a target",
            f"give source and target, and of {', '.join(sorted(known))} and at what you know",
        )
    moment = read_moment(at, minute_now(assembly) // DAY) if at else None
    return ask(source, target, **rest, at=moment)


def explain(
    assembly: Assembly,
    found: Iterable[Finding],
    asked: Question,
    groups: Iterable[GroupRecord] = (),
) -> Explanation:
    """Walk one flow through all layers. Raises ``GatewayError`` for a device nobody knows.

    ``groups``: what is known of each.
    """
    now = minute_now(assembly) if asked.at is None else asked.at
    facts, notes = _facts(assembly, asked)
    walked = _walked(assembly, asked, facts)
    fate = walked.fate
    asks_rules = fate is not Fate.LEFT_ALONE or bool(walked.rule)
    steps = assembly.policy.trace(facts, now) if asks_rules else ()
    answer = steps[-1].answer if steps else None
    decision = answer if isinstance(answer, Decision) else None
    notes += _notes(assembly, facts, now, fate, decision)
    takes = _takes(assembly, fate, decision)
    chosen: tuple[Chosen, ...] = ()
    if decision is not None and fate in _DECIDED_HERE:
        chosen = tuple(_through(assembly, groups, decision.outbound, facts))
    end = chosen[-1].member if chosen else decision.outbound if decision else ""
    return Explanation(
        protocol=str(facts.protocol),
        source=str(facts.source) if facts.source.port else facts.source.host,
        destination=str(facts.destination) if facts.destination.port else facts.destination.host,
        name=asked.name,
        at=week_time(now) if assembly.policy.needs.time else "",
        interface=facts.interface,
        backend=assembly.backend.value,
        netfilter=walked.hops,
        fate=fate,
        rules=tuple(map(_tried, steps)),
        takes=takes,
        by=_decided_by(fate),
        outbound=decision.outbound if decision else "",
        rule=decision.rule if decision else "",
        groups=chosen,
        ways=tuple(_ways(assembly, found, asked, facts, fate, decision, end)),
        notes=tuple(notes),
    )


def _facts(assembly: Assembly, asked: Question) -> tuple[FlowFacts, list[str]]:
    """What is known of the flow, and what was taken for granted."""
    interface, notes = _arrival(assembly, asked)
    mac, hostname = device_facts(assembly.config, asked.device)
    if assembly.policy.needs.mac and not asked.device:
        mac = neighbour(assembly, asked.source.host, interface)
    if asked.assumed:
        notes.append(f"the address of {asked.name} was not asked for: {asked.destination.host}")
    facts = FlowFacts(
        asked.protocol,
        asked.source,
        asked.destination,
        interface,
        mac,
        hostname,
        name=asked.name,
        sniffed=asked.sniffed,
    )
    return facts, notes


def _walked(assembly: Assembly, asked: Question, facts: FlowFacts) -> Walk:
    """Through netfilter, and behind it into a TUN that takes by routes."""
    walked = walk(assembly.plan, assembly.marks, facts, _address_type(assembly, asked))
    if not taken(assembly.config, assembly.ways, assembly.host, asked.destination.host):
        return walked
    into = Hop("ip rule", "capture", f"into {assembly.config.tun.name}")
    return replace(walked, fate=Fate.DIVERTED, hops=(*walked.hops, into))


def _tried(step: Step) -> Tried:
    return Tried(step.rule.text, step.outcome, step.key, step.seen)


def _arrival(assembly: Assembly, asked: Question) -> tuple[str, list[str]]:
    """The interface that the flow comes in on, empty for one of this machine's own."""
    lan = assembly.config.lan.interfaces
    if asked.interface:
        return asked.interface, _foreign(asked.interface, lan)
    host = asked.source.host
    if host in assembly.host.addresses:
        return "", [f"{host} is this machine's own address"]
    (answer,) = look_up([Egress("", host)])
    if answer.error or not answer.device:
        return lan[0] if lan else "", [f"{host}: {answer}; taken to come in on a LAN interface"]
    return answer.device, _foreign(answer.device, lan)


def neighbour(assembly: Assembly, host: str, interface: str) -> str | None:
    """MAC address of a host on one of our links, if the kernel knows it now."""
    links = {link.name: link.index for link in assembly.host.interfaces}
    return ask_kernel(host, links[interface]) if interface in links else None


def _foreign(interface: str, lan: tuple[str, ...]) -> list[str]:
    if interface in lan:
        return []
    return [f"{interface} is not in lan.interfaces, so nothing from there is diverted"]


def _address_type(assembly: Assembly, asked: Question) -> AddressType:
    """Of the destination, as ``fib`` of netfilter says it."""
    address = ip_address(asked.destination.host)
    if address.is_loopback or str(address) in assembly.host.addresses:
        return "local"
    if address.is_multicast:
        return "multicast"
    near = (own.network for link in assembly.host.interfaces for own in link.addresses)
    broadcast = {str(n.broadcast_address) for n in near if n.version == 4 and n.prefixlen < 31}
    if str(address) in broadcast or str(address) == "255.255.255.255":
        return "broadcast"
    return "unicast"


def _takes(assembly: Assembly, fate: Fate, decision: Decision | None) -> str:
    if fate in (Fate.REFUSED, Fate.DROPPED):
        return REJECT
    if fate not in _DECIDED_HERE or decision is None:
        return DIRECT
    refuses = isinstance(stands_for(assembly.config, decision.outbound), RejectOutbound)
    return REJECT if refuses else decision.outbound


def _through(
    assembly: Assembly, groups: Iterable[GroupRecord], outbound: str, facts: FlowFacts
) -> Iterator[Chosen]:
    """From a group to its member, as long as that is a group."""
    known = {group.name: group for group in groups}
    while (group := known.get(outbound)) is not None:
        takes = group.takes
        settings = assembly.config.outbound(outbound)
        if isinstance(settings, LoadBalanceGroup):
            takes = by_weight(takes, balanced_by(settings.by, facts))
        yield Chosen(group.name, group.type, takes[0], group.reason)
        outbound = takes[0]


def _decided_by(fate: Fate) -> Literal["kernel", "listener", "queue", "nobody"]:
    if fate is Fate.DIVERTED:
        return "listener"
    if fate is Fate.ASKED:
        return "queue"
    return "nobody" if fate is Fate.LEFT_ALONE else "kernel"


def _notes(
    assembly: Assembly, facts: FlowFacts, now: int, fate: Fate, decision: Decision | None
) -> list[str]:
    """What the walk alone does not say."""
    policy = assembly.policy
    notes = []
    if fate in _DECIDED_HERE:
        early = policy.decide(facts._replace(name=None, sniffed=None), now)
        if isinstance(early, Undecided):
            notes.append(f"the first bytes are waited for: {early.rule} asks for the {early.need}")
    if fate is Fate.DIVERTED and facts.protocol is Protocol.ICMP and decision is not None:
        outbound, inbound = assembly.config.outbound(decision.outbound), assembly.config.inbound
        if isinstance(outbound, Socks5Outbound):
            does = "answers it itself" if inbound.icmp == "pretend" else "refuses it"
            notes.append(f"SOCKS5 carries no ICMP: the gateway {does}")
    if fate is Fate.LEFT_ALONE and decision is not None:
        notes.append(f"no listener takes {facts.protocol.upper()}: it is routed on, not proxied")
    unknown = [
        what
        for what, needed in (
            ("device", policy.needs.mac and facts.mac is None and facts.hostname is None),
            ("dscp", policy.needs.dscp),
            ("uid, gid and cgroup", policy.needs.owner and not facts.interface),
        )
        if needed
    ]
    notes += [f"rules ask for {what}, which is not known here" for what in unknown]
    return notes


def _ways(
    assembly: Assembly,
    found: Iterable[Finding],
    asked: Question,
    facts: FlowFacts,
    fate: Fate,
    decision: Decision | None,
    end: str,
) -> Iterable[Way]:
    """Of the outbound ``end``, which is the decision's or that of its group's member."""
    if fate in (Fate.REFUSED, Fate.DROPPED):
        return []
    routed = fate is Fate.ASKED and decision is not None and decision.outbound == DIRECT
    if fate not in _DECIDED_HERE or decision is None or routed:
        mark = decision.mark if decision and fate is not Fate.LEFT_ALONE else None
        return [_routed(facts, mark)]
    if isinstance(assembly.config.outbound(end), DirectOutbound) and (not asked.assumed):
        return [_way(finding) for finding in _to(assembly, end, facts)]
    return [_way(finding) for finding in found if finding.egress.outbound == end]


def _routed(facts: FlowFacts, mark: Mark | None) -> Way:
    """A flow that nobody terminates: the kernel forwards it, or sends it itself."""
    destination = facts.destination.host
    if facts.interface:
        answer = forwarding(facts.source.host, destination, facts.interface, mark)
    else:
        (answer,) = look_up([Egress("", destination, mark)])
    return Way(destination, str(answer), str(mark or ""))


def _to(assembly: Assembly, outbound: str, facts: FlowFacts) -> list[Finding]:
    """A direct outbound's way, asked for the flow's own destination."""
    host, config = facts.destination.host, assembly.config
    ways = [
        replace(way, destination=host, port=facts.destination.port)
        for way in assembly.ways
        if way.outbound == outbound and way.family is family_of(host)
    ]
    return [
        judge(way, answer, config.inbound.port, own_diverted=config.takes_own)
        for way, answer in zip(ways, look_up(ways), strict=True)
    ]


def _way(finding: Finding) -> Way:
    way = finding.egress
    return Way(
        way.destination,
        finding.route,
        str(way.mark or ""),
        way.how,
        finding.outcome.value,
        finding.reason,
        finding.hint,
    )
