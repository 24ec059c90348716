"""What one planned rule becomes in xtables."""

from __future__ import annotations

from ipaddress import ip_network

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gateway.flow import Protocol
from gateway.marks import Mark, Marks
from gateway.plan.addresses import Family
from gateway.plan.matches import (
    Addresses,
    DestinationType,
    InInterface,
    InSet,
    LastHop,
    MarkIs,
    Match,
    OfRealm,
    OutInterface,
    Ports,
    ReplyDirection,
    TransparentSocket,
    Transport,
    Untracked,
)
from gateway.plan.model import Backend, Chain, NftRule, Plan
from gateway.plan.render_iptables import render_iptables
from gateway.plan.verdicts import (
    Accept,
    Count,
    Goto,
    Jump,
    Redirect,
    Reject,
    Return,
    SetMark,
    Tproxy,
    Verdict,
)
from gateway.plan.xt import MULTIPORT_SLOTS, XtRule, xt_tables

V4, V6 = Family
TCP, ICMP = Transport((Protocol.TCP,)), Transport((Protocol.ICMP,))
MARK = Marks().divert


def _lines(matches: tuple[Match, ...], verdict: Verdict, family: Family) -> list[str]:
    """The rule as iptables would be given it, tag left out."""
    rule = NftRule("r", verdict, matches)
    plan = Plan(Backend.IPTABLES, (Chain("c", "mangle", (rule,)),))
    text = render_iptables(plan, family)
    comment = f"-m comment --comment {rule.tag} "
    return [
        line.removeprefix("-A GATEWAY_C ").replace(comment, "")
        for line in text.splitlines()
        if line.startswith("-A")
    ]


@pytest.mark.parametrize(
    ("matches", "verdict", "family", "lines"),
    [
        ((), Accept(), V4, ["-j ACCEPT"]),
        ((), Count(), V4, ["-j MARK --set-xmark 0x0/0x0"]),
        ((), Jump("lan"), V4, ["-j GATEWAY_LAN"]),
        ((), Goto("lan"), V4, ["-g GATEWAY_LAN"]),
        ((), SetMark(MARK), V4, ["-j MARK --set-xmark 0x01000000/0x0f000000"]),
        (
            (),
            SetMark(Mark(0, 0xF), "connection"),
            V4,
            ["-j CONNMARK --set-xmark 0x00000000/0x0000000f"],
        ),
        ((TCP,), Tproxy(7895), V4, ["-p tcp -j TPROXY --on-port 7895 --on-ip 127.0.0.1"]),
        ((TCP,), Tproxy(7895), V6, ["-p tcp -j TPROXY --on-port 7895 --on-ip ::1"]),
        ((TCP,), Redirect(7895), V6, ["-p tcp -j REDIRECT --to-ports 7895"]),
        (
            (),
            Reject("icmp-admin-prohibited"),
            V6,
            ["-j REJECT --reject-with icmp6-adm-prohibited"],
        ),
        ((InInterface(("a", "b")),), Accept(), V4, ["-i a -j ACCEPT", "-i b -j ACCEPT"]),
        ((ICMP,), Accept(), V4, ["-p icmp -j ACCEPT"]),
        ((ICMP,), Accept(), V6, ["-p icmpv6 -j ACCEPT"]),
        (
            (Addresses("source", (ip_network("fd00::/8"),)),),
            Accept(),
            V6,
            ["-s fd00::/8 -j ACCEPT"],
        ),
        (
            (InSet("destination", "gw_x"), InSet("source", "gw_y", negate=True)),
            Accept(),
            V4,
            ["-m set --match-set gw_x dst -m set ! --match-set gw_y src -j ACCEPT"],
        ),
        ((MarkIs(MARK),), Accept(), V4, ["-m mark --mark 0x01000000/0x0f000000 -j ACCEPT"]),
        (
            (MarkIs(MARK, negate=True),),
            Return(),
            V4,
            ["-m mark ! --mark 0x01000000/0x0f000000 -j RETURN"],
        ),
        (
            (MarkIs(MARK, "connection"),),
            Accept(),
            V4,
            ["-m connmark --mark 0x01000000/0x0f000000 -j ACCEPT"],
        ),
        (
            (DestinationType(("local", "broadcast", "multicast")),),
            Accept(),
            V4,
            ["-m addrtype --dst-type LOCAL,BROADCAST,MULTICAST -j ACCEPT"],
        ),
        (
            (DestinationType(("local", "broadcast", "multicast")),),
            Accept(),
            V6,
            [
                "-m addrtype --dst-type LOCAL -j ACCEPT",
                "-m addrtype --dst-type MULTICAST -j ACCEPT",
            ],
        ),
        (
            (ReplyDirection(), TransparentSocket()),
            Accept(),
            V4,
            ["-m conntrack --ctdir REPLY -m socket --transparent -j ACCEPT"],
        ),
        (
            (OutInterface(("wan0", "lte0")), OfRealm(103)),
            Accept(),
            V4,
            [
                "-o wan0 -m realm --realm 0x67 -j ACCEPT",
                "-o lte0 -m realm --realm 0x67 -j ACCEPT",
            ],
        ),
        ((LastHop(),), Return(), V4, ["-m ttl --ttl-eq 1 -j RETURN"]),
        ((LastHop(),), Return(), V6, ["-m hl --hl-eq 1 -j RETURN"]),
        ((Untracked(),), Accept(), V6, ["-m conntrack --ctstate UNTRACKED -j ACCEPT"]),
        (
            (TCP, Ports("source", ((1, 1),)), Ports("destination", ((80, 80), (90, 99)))),
            Accept(),
            V4,
            ["-p tcp -m multiport --sports 1 -m multiport --dports 80,90:99 -j ACCEPT"],
        ),
    ],
)
def test_rule(
    matches: tuple[Match, ...], verdict: Verdict, family: Family, lines: list[str]
) -> None:
    assert _lines(matches, verdict, family) == lines


def test_alternatives_multiply() -> None:
    matches = (InInterface(("a", "b")), Transport((Protocol.TCP, Protocol.UDP)))
    assert len(_lines(matches, Accept(), V4)) == 4


def test_rules_of_the_other_family_are_left_out() -> None:
    plan = Plan(Backend.IPTABLES, (Chain("c", "nat", (NftRule("r", Accept(), (), V6),)),))
    assert xt_tables(plan, V4) == ()
    assert [table.name for table in xt_tables(plan, V6)] == ["nat"]


@given(st.lists(st.tuples(st.integers(1, 65535), st.integers(0, 9)), min_size=1, max_size=60))
def test_multiport_keeps_every_range_and_its_limit(widths: list[tuple[int, int]]) -> None:
    ranges = tuple((low, min(low + width, 65535)) for low, width in widths)
    chain = Chain("c", "mangle", (NftRule("r", Accept(), (TCP, Ports("source", ranges))),))
    (table,) = xt_tables(Plan(Backend.IPTABLES, (chain,)), V4)
    found: list[tuple[int, int]] = []
    for rule in table.chains[0].rules:
        texts = _ports(rule).split(",")
        bounds = [tuple(map(int, text.split(":"))) for text in texts]
        assert sum(map(len, bounds)) <= MULTIPORT_SLOTS
        found += [(b[0], b[-1]) for b in bounds]
    assert tuple(found) == ranges


def _ports(rule: XtRule) -> str:
    (match,) = rule.matches
    (option,) = match.options
    return option.values[0]
