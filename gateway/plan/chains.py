"""The chains around the owner's rules: who enters them, and what their answers do.

::

    prerouting ─ lan ─ decide ─┬─ divert      mark, then the listener (or divert_otherwise, of
                               │              sources with an on_failure of their own)
                               ├─ direct      connmark: routed on, for good
                               ├─ refuse      mark: reset or ICMP error in forward
                               ├─ drop
                               └─ ask         a program, whose answer comes back to lan
    output ─ decide_own ─┬─ divert_own  mark, then over lo to prerouting (own_loop)
                         └─ as above

What is not diverted leaves our chains as it came, so whatever else filters on this
machine still sees it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal

from gateway.flow import Protocol
from gateway.marks import SET_PREFIX, Mark
from gateway.plan.address_sets import AddressSets
from gateway.plan.addresses import EVERYTHING, Family
from gateway.plan.hooks import hooked
from gateway.plan.matches import (
    DestinationType,
    InInterface,
    InSet,
    LastHop,
    MarkIs,
    Match,
    Ports,
    ReplyDirection,
    TransparentSocket,
    Transport,
    Untracked,
)
from gateway.plan.model import AddressSet, Chain, NftRule
from gateway.plan.policy_rules import REFUSE, REFUSE_ICMP, direct_chain
from gateway.plan.shape import Shape
from gateway.plan.tun import arrivals, enter, kept, past, unknown
from gateway.plan.verdicts import (
    Accept,
    Count,
    Drop,
    Goto,
    Jump,
    Redirect,
    Return,
    SetMark,
    Tproxy,
)

DIVERT: Final = "divert"
DIVERT_OWN: Final = "divert_own"
ASK: Final = "ask"
_ANSWERED: Final = "answered"
#: Where packets go that were asked about, and what else may become of them by their mark.
ANSWERED: Final = frozenset({DIVERT, _ANSWERED})
_ROUTED: Final = "routed"
DIVERT_OTHERWISE: Final = "divert_otherwise"

_ALIVE: Final = {Family.V4: f"{SET_PREFIX}alive4", Family.V6: f"{SET_PREFIX}alive6"}
#: How long the diversion outlives the gateway, where it fails open; refreshed each second.
ALIVE_TIMEOUT_S: Final = 5

_TCP: Final = Transport((Protocol.TCP,))
_UDP: Final = Transport((Protocol.UDP,))
_ICMP: Final = Transport((Protocol.ICMP,))
_NOT_FORWARDED: Final = DestinationType(("local", "broadcast", "multicast"))


def alive_sets(shape: Shape) -> list[AddressSet]:
    """The dead-man sets. Halves of all addresses: hash:net has no prefix of length 0."""
    if not (shape.fail_open or shape.otherwise):
        return []
    return [
        AddressSet(_ALIVE[f], f, tuple(EVERYTHING[f].subnets()), ALIVE_TIMEOUT_S)
        for f in shape.families
    ]


def prerouting(shape: Shape, sets: AddressSets) -> list[Chain]:
    """The way in for packets that arrive, with the chains that it needs besides ``decide``."""
    marks = shape.marks
    rules = [_routed(shape), NftRule("bypass", Accept(), (MarkIs(marks.bypass),))]
    chains: list[Chain] = []
    if shape.tun is not None:
        guard, chains = arrivals(shape.tun, marks)
        rules += guard
        if shape.captures:
            rules += past(shape.tun, marks, own=False)
    if shape.own and shape.by_tproxy:
        own: tuple[Match, ...] = (InInterface(("lo",)), MarkIs(marks.divert_own))
        if not shape.tproxy:
            own = (shape.by_tproxy, *own)
        rules.append(NftRule("own-loop", Goto("own_loop"), own))
        refuse = NftRule("no-listener", Drop())
        chains.append(Chain("own_loop", "mangle", (*_to_listener(shape), refuse)))
    if shape.shortcut:
        # On every interface: replies to a socket with its client's address come from the WAN.
        rules.append(NftRule("established", Goto("established"), (_TCP, TransparentSocket())))
    if shape.shortcut or (shape.lan and shape.by_tproxy is not None):
        # ICMP errors about what such a socket has sent come to the far end's address. Without the
        # one that says what a path takes, its flow would stand still.
        rules.append(NftRule("told", Goto("established"), (_ICMP, TransparentSocket())))
        mark = NftRule("mark", SetMark(marks.divert))
        chains.append(Chain("established", "mangle", (mark, NftRule("accept", Accept()))))
    if shape.lan:
        rules.append(NftRule("lan", Jump("lan"), (InInterface(shape.lan),)))
        chains.append(_lan(shape, sets))
    if shape.lan and shape.udp and shape.preserve_source:
        # Replies to such a socket come from the WAN. What comes from the LAN has left already:
        # there, an address with a socket of ours is one that we answer as.
        answered = (_UDP, TransparentSocket())
        rules.append(NftRule("established-udp", Goto("established"), answered))
    if not chains:
        return []
    return [hooked("prerouting", "prerouting", "mangle", rules), *chains]


def output(shape: Shape) -> list[Chain]:
    """The way in for what this machine sends itself."""
    rules = [_routed(shape), NftRule("bypass", Accept(), (MarkIs(shape.marks.bypass),))]
    if shape.udp:
        # A far end that speaks first opens a connection, as conntrack sees it, so that what the
        # client answers runs against it: without this mark it would be taken for a reply.
        carried = SetMark(shape.marks.divert, "connection")
        rules.insert(0, NftRule("answer", carried, (_UDP, MarkIs(shape.marks.bypass))))
    if shape.captures and shape.tun is not None:
        rules = [_routed(shape), *past(shape.tun, shape.marks, own=True)]
        return [hooked("output", "output", "mangle", rules)]
    if not shape.own:
        return [hooked("output", "output", "mangle", rules)] if shape.udp else []
    rules += [NftRule(f"program-{n}", Accept(), (who,)) for n, who in enumerate(shape.programs)]
    if Family.V6 in shape.families:
        # A rule that rejects everything must not cut this machine off from its neighbours.
        rules.append(NftRule("discovery", Return(), (_ICMP, Untracked()), Family.V6))
    rules += _left_alone(shape, shape.marks.divert_own)
    rules.append(NftRule("decide", Goto("decide_own")))
    return [hooked("output", "output", "mangle", rules)]


def answers(shape: Shape, used: set[str], sets: AddressSets) -> list[Chain]:
    """The chains that carry out what rules say, those in ``used`` only.

    Their end returns to the caller of the policy.
    """
    marks = shape.marks
    chains = [
        *_diverts(shape, marks.divert, sets),
        _divert(shape, DIVERT_OWN, marks.divert_own),
        _ask(shape),
        _answered_direct(shape),
        *(_direct(shape, mark) for mark in (None, *shape.owner_marks)),
        Chain(REFUSE, "mangle", (NftRule("mark", SetMark(marks.refuse)),)),
        Chain(REFUSE_ICMP, "mangle", (NftRule("mark", SetMark(marks.refuse_icmp)),)),
    ]
    if DIVERT in used:
        used = used | {DIVERT_OTHERWISE}
    return [*_routed_marks(shape), *(chain for chain in chains if chain.name in used)]


def carrying(shape: Shape) -> set[str]:
    """The chains that take packets of UDP flows which the gateway carries already."""
    entries = ((DIVERT, bool(shape.lan)), (DIVERT_OWN, shape.own))
    return {name for name, entered in entries if entered and shape.udp}


def redirects(shape: Shape) -> list[Chain]:
    """REDIRECT of marked packets: nat hooks see the first packet of a flow only.

    Also where no rule leads here any more: without a nat chain at all, the kernel stops
    translating the flows that it redirected before. The port stands in the rule's name, and so
    in its tag, for who cleans up (``Applier.remove``).
    """
    if not shape.redirect:
        return []
    ways: list[tuple[Literal["prerouting", "output"], bool, Mark]] = [
        ("prerouting", bool(shape.lan), shape.marks.divert),
        ("output", shape.own, shape.marks.divert_own),
    ]
    return [
        hooked(
            f"nat_{point}",
            point,
            "nat",
            [NftRule(f"redirect-{shape.port}", Redirect(shape.port), (_TCP, MarkIs(mark)))],
        )
        for point, wanted, mark in ways
        if wanted
    ]


def _lan(shape: Shape, sets: AddressSets) -> Chain:
    dialled = (
        _TCP,
        Ports("destination", ((shape.port, shape.port),)),
        DestinationType(("local",)),  # a route lookup: after what is cheap
    )
    rules = [
        *_last_hop(shape),
        *_answered(shape),
        NftRule("to-listener", Count(), dialled),
        *_left_alone(shape, shape.marks.divert),
    ]
    for family, prefixes in shape.upstreams.items():
        match = sets.match("source", prefixes)
        rules.append(NftRule(f"upstream-{family}", Return(), match, family))
    return Chain("lan", "mangle", (*rules, NftRule("decide", Goto("decide"))))


def _last_hop(shape: Shape) -> list[NftRule]:
    """What looks for the hops of a path (traceroute): the kernel tells it that here is one.

    To a listener it would be delivered, however few hops it has left, and the far end's answer
    would come as if from here. It cannot leak: nobody forwards it.
    """
    if shape.listened is None or not shape.hops:
        return []
    return [NftRule(f"last-hop-{f}", Return(), (LastHop(),), f) for f in shape.families]


def _answered(shape: Shape) -> list[NftRule]:
    """What comes back from the packet queue, with the answer as its mark."""
    marks = shape.marks
    if shape.queue is None:
        return []
    return [
        NftRule("answer-divert", Goto(DIVERT), (MarkIs(marks.divert),)),
        NftRule("answer-direct", Goto(_ANSWERED), (MarkIs(marks.direct),)),
        NftRule("answer-refuse", Return(), (MarkIs(marks.refuse),)),
        NftRule("answer-refuse-icmp", Return(), (MarkIs(marks.refuse_icmp),)),
    ]


def _ask(shape: Shape) -> Chain:
    """Into the packet queue, as long as the gateway lives."""
    rules = [*_clear(shape), *_dead(shape)]
    if shape.queue is not None:
        rules.append(NftRule("queue", shape.queue))
    return Chain(ASK, "mangle", tuple(rules))


def _answered_direct(shape: Shape) -> Chain:
    """Keep the answer for the flow, with the owner's mark; the packet is as it came then."""
    marks = shape.marks
    kept = [
        NftRule(direct_chain(mark), SetMark(mark, "connection"), (MarkIs(mark),))
        for mark in shape.owner_marks
    ]
    clear = NftRule("clear", SetMark(Mark(0, marks.mask)))
    keep = NftRule("keep", SetMark(marks.direct, "connection"))
    return Chain(_ANSWERED, "mangle", (*kept, clear, keep))


def _routed(shape: Shape) -> NftRule:
    """A flow that was routed cannot be taken over later, whatever a reload says.

    Of such a flow every packet but the first leaves here, both ways, on whatever interface;
    as it has to cost what forwarding costs, this rule is the first.
    """
    verdict = Goto(_ROUTED) if shape.owner_marks or shape.captures else Return()
    return NftRule("direct", verdict, (MarkIs(shape.marks.direct, "connection"),))


def _left_alone(shape: Shape, mark: Mark) -> list[NftRule]:
    """What no rule of the owner is asked about."""
    reply = NftRule("reply", Return(), (ReplyDirection(),))
    not_forwarded = NftRule("not-forwarded", Return(), (_NOT_FORWARDED,))
    rules = [reply, not_forwarded]
    if shape.udp:
        # What has been answered by the gateway stays with it, be it a reply or not (``output``).
        carried = (_UDP, MarkIs(shape.marks.divert, "connection"))
        divert = DIVERT if mark == shape.marks.divert else DIVERT_OWN
        rules = [not_forwarded, NftRule("carried", Goto(divert), carried), reply]
    if shape.tun is not None:
        rules = [*kept(shape.tun, shape.marks), *rules]
    if shape.redirect:
        # Nor can one that is redirected be let go; the shortcut does this for TPROXY.
        redirected = (MarkIs(mark, "connection"),)
        rules.append(NftRule("redirected", SetMark(mark), redirected))
        rules.append(NftRule("keep-redirected", Return(), redirected))
    return rules


def _routed_marks(shape: Shape) -> list[Chain]:
    """Each packet of a direct flow gets the mark that the owner asked for when it was decided.

    Not what runs the other way: by such a mark it would be routed out again. Beside a TUN that
    takes by routes, the packets of a flow that was decided before it did are led past it.
    """
    rules = [NftRule("past", SetMark(shape.marks.bypass))] if shape.captures else []
    if shape.owner_marks:
        rules.append(NftRule("reply", Return(), (ReplyDirection(),)))
    rules += [
        NftRule(direct_chain(mark), SetMark(mark), (MarkIs(mark, "connection"),))
        for mark in shape.owner_marks
    ]
    return [Chain(_ROUTED, "mangle", tuple(rules))] if rules else []


def _direct(shape: Shape, mark: Mark | None) -> Chain:
    """Remember that the flow is direct, and the owner's mark beside it."""
    rules = [*_clear(shape), NftRule("keep", SetMark(shape.marks.direct, "connection"))]
    if mark is not None:
        rules.append(NftRule("mark", SetMark(mark)))
        rules.append(NftRule("keep-mark", SetMark(mark, "connection")))
    return Chain(direct_chain(mark), "mangle", tuple(rules))


def _diverts(shape: Shape, mark: Mark, sets: AddressSets) -> list[Chain]:
    """The LAN's way to the listener, and that of the sources that fail the other way."""
    usual = _divert(shape, DIVERT, mark)
    if not shape.otherwise:
        return [usual]
    leave = []
    for family, prefixes in shape.otherwise.items():
        match = sets.match("source", prefixes)
        leave.append(NftRule(f"otherwise-{family}", Goto(DIVERT_OTHERWISE), match, family))
    contrary = replace(shape, fail_open=not shape.fail_open)
    other = _divert(contrary, DIVERT_OTHERWISE, mark)
    return [replace(usual, rules=(*leave, *usual.rules)), other]


def _divert(shape: Shape, name: str, mark: Mark) -> Chain:
    """Mark for the listener; protocols that are not carried leave at the end."""
    rules = [*_clear(shape), *_dead(shape)]
    if shape.tun is not None:
        rules += enter(shape.tun, shape.marks)
    # The mark stands before tproxy: without a listener nft goes on with the next rule, and an
    # unmarked packet would be routed on to its destination, past the proxy.
    if shape.listened is not None:
        rules.append(NftRule("mark", SetMark(mark), (shape.listened,)))
    if shape.redirect:
        rules.append(NftRule("keep", SetMark(mark, "connection"), (_TCP,)))
    if shape.queue is not None and shape.udp and name == DIVERT:
        # The listener's answer does this too, but until then each packet would be asked about.
        rules.append(NftRule("keep-udp", SetMark(mark, "connection"), (_UDP,)))
    if name != DIVERT_OWN and shape.by_tproxy:
        rules += _to_listener(shape)
        if shape.fail_open:
            rules.append(NftRule("unmark", SetMark(Mark(0, mark.mask)), (shape.by_tproxy,)))
        else:
            rules.append(NftRule("no-listener", Drop(), (shape.by_tproxy,)))
    if shape.tun is not None:
        rules += unknown(shape.tun, shape.marks)
    return Chain(name, "mangle", tuple(rules))


def _clear(shape: Shape) -> list[NftRule]:
    """A decided packet is as it came, wherever it leaves to."""
    if not shape.marking:
        return []
    return [NftRule("clear", SetMark(Mark(0, shape.marks.mask)))]


def _dead(shape: Shape) -> list[NftRule]:
    """Where the gateway fails open and has died, packets go where they want to."""
    if not shape.fail_open:
        return []
    return [
        NftRule(f"dead-{f}", Return(), (InSet("source", _ALIVE[f], negate=True),), f)
        for f in shape.families
    ]


def _to_listener(shape: Shape) -> list[NftRule]:
    assert shape.by_tproxy is not None
    carried = (shape.by_tproxy,)
    return [NftRule(f"tproxy-{f}", Tproxy(shape.port), carried, f) for f in shape.families]
