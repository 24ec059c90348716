"""Random policies and the flows to try them on, for all that compares the engine with others."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from itertools import cycle, product

import hypothesis.strategies as st

from gateway.config.schema import Config
from gateway.flow import Endpoint, FlowFacts, Owner, Protocol
from gateway.plan.address_sets import AddressSets
from gateway.plan.addresses import Family
from gateway.plan.conditions import Packets, doubts, split
from gateway.policy.engine import Policy
from gateway.policy.names import NamePatterns
from gateway.policy.prefixes import Network, PrefixSet
from gateway.policy.rule import WEEK, CompiledRule, Condition, Destinations, LargeSet

CONFIG = Config.model_validate(
    {
        "lan": {"interfaces": ["lan0", "lan1"], "this_machine": True},
        # Else it would let packets past the rules of whoever looks at them.
        "inbound": {"host_firewall": "leave"},
        "outbounds": {
            "home": {"type": "socks5", "server": "203.0.113.5"},
            "icmp": {"type": "reject", "answer": "icmp"},
            "silent": {"type": "reject", "answer": "drop"},
            "mixed": {"type": "fallback", "members": ["direct", "home"]},
            "plain": {"type": "select", "members": ["direct"]},
        },
        "rules": [{"to": "direct"}],
    }
)
TARGETS = ["direct", "reject", *CONFIG.outbounds]
INTERFACES = list(CONFIG.lan.interfaces)

#: Few, and nested, so that rules and packets often meet.
V4 = ["10.0.0.0/8", "10.0.1.0/24", "10.0.1.7/32", "192.0.2.0/24", "0.0.0.0/0"]
V6 = ["fd00::/8", "fd00:1::/64", "2001:db8::/32", "fd00:1::7/128", "::/0"]
HOSTS = {4: ["10.0.1.7", "10.9.9.9", "192.0.2.1"], 6: ["fd00:1::7", "fd00:2::1", "2001:db8::1"]}
PORTS = [22, 79, 80, 81, 443, 8000]
MACS = ["02:00:00:00:00:01", "02:00:00:00:00:02"]
DSCPS = [0, 10, 46]
UIDS = [1000, 1001]
GID = 100
NAME = "www.example.com"


class Somewhere:
    """Every address is in one country and one autonomous system."""

    def country(self, host: str) -> str:
        return "AA" if host else ""

    def asn(self, host: str) -> int:
        return 64500 if host else 0


class Listed:
    """A large set of prefixes."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._set = PrefixSet.from_networks(networks)

    def __len__(self) -> int:
        return len(self._set.intervals)

    def contains(self, number: int) -> bool:
        return any(first <= number < behind for first, behind in self._set.intervals)

    def intervals(self) -> Iterable[tuple[int, int]]:
        return self._set.intervals


class NoNames:
    """A large set of names in which none is."""

    def matches(self, name: str) -> bool:
        return not name


def _some(values: list[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True).map(tuple)


@st.composite
def networks(draw: st.DrawFn) -> tuple[Network, ...]:
    chosen = draw(st.lists(st.sampled_from([*V4, *V6]), max_size=4))
    return PrefixSet.from_networks(map(ip_network, chosen)).networks


@st.composite
def groups(draw: st.DrawFn, doubtful: bool) -> tuple[Destinations, ...]:
    names = draw(st.lists(st.sampled_from(["a", "b"]), unique=True, max_size=2))
    sets = [
        LargeSet(
            f"{name}-{draw(st.integers())}",
            Listed(draw(networks())) if draw(st.booleans()) else None,
            NoNames() if doubtful and draw(st.booleans()) else None,
        )
        for name in names
    ]
    return (Destinations(draw(networks()), tuple(sets)),)


ports = st.lists(st.sampled_from(PORTS), min_size=1, max_size=3, unique=True).map(
    lambda chosen: tuple((port, port + 1) for port in sorted(chosen) if port not in (79, 81))
)
protocols = st.one_of(
    st.fixed_dictionaries({"protocols": _some(list(Protocol))}),
    st.fixed_dictionaries(
        {"protocols": _some([Protocol.TCP, Protocol.UDP])},
        optional={"ports": ports, "source_ports": ports},
    ),
)
of_packets = {
    "source": networks(),
    "destination": networks(),
    "interfaces": _some(INTERFACES),
    "macs": _some(MACS),
    "dscps": _some(DSCPS),
    "uids": _some(UIDS),
    "gids": st.sampled_from([(GID,), (GID + 1,)]),
    "destinations": groups(doubtful=False),
}
#: What the kernel cannot know.
to_learn = {
    "hostnames": st.just(("tv",)),
    "names": st.just(NamePatterns.of([NAME])),
    "sniffed": st.just(("tls",)),
    "countries": _some(["AA", "BB"]),
    "asns": _some([64500, 64501]),
    "times": st.just(((0, WEEK // 2),)),
    "destinations": groups(doubtful=True),
}


def _fields(doubtful: bool) -> st.SearchStrategy[dict[str, object]]:
    values = {**of_packets, **(to_learn if doubtful else {})}
    chosen = st.lists(st.sampled_from([*values]), max_size=2, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: values[name] for name in names})
    )
    return st.tuples(st.just({}) | protocols, chosen).map(lambda both: {**both[0], **both[1]})


def conditions(doubtful: bool, depth: int = 2) -> st.SearchStrategy[dict[str, object]]:
    """Fields of a ``Condition``; ``doubtful``: also such as the kernel cannot know."""
    if depth == 0:
        return _fields(doubtful)
    inner = st.lists(conditions(doubtful, depth - 1).map(lambda f: Condition(**f)), max_size=2)
    nested = st.just({}) | st.fixed_dictionaries(
        {}, optional={key: inner.map(tuple) for key in ("all_of", "any_of", "none_of")}
    )
    return st.tuples(_fields(doubtful), nested).map(lambda both: {**both[0], **both[1]})


@st.composite
def rules(draw: st.DrawFn, doubtful: bool, lists: list[str], size: int) -> list[CompiledRule]:
    made = []
    for index in range(draw(st.integers(0, size))):
        goto = draw(st.sampled_from(["", "", "", *lists]))
        made.append(
            CompiledRule(
                **draw(conditions(doubtful)),
                index=index,
                text=f"rules[{index}]",
                outbound="" if goto else draw(st.sampled_from(TARGETS)),
                goto=goto,
                log=draw(st.integers(0, 9)) == 0,
            )
        )
    return made


@st.composite
def policies(draw: st.DrawFn, doubtful: bool = False) -> Policy:
    """A policy for ``CONFIG``, with lists that lead on to others."""
    main = draw(rules(doubtful, ["one", "two"], 6))
    last = CompiledRule(index=len(main), text="last", outbound=draw(st.sampled_from(TARGETS)))
    lists = {
        "one": draw(rules(doubtful, ["two"], 2)),
        "two": draw(rules(doubtful, [], 2)),
    }
    return Policy([*main, last], lists, Somewhere())


def in_doubt(rule: CompiledRule, facts: FlowFacts) -> bool:
    """Whether the kernel cannot know all that the rule asks of such packets."""
    packets = Packets(not facts.interface, tuple(Family))
    _, others = split(rule, packets, AddressSets())
    return bool(doubts(others))


def all_flows() -> list[FlowFacts]:
    """Every flow between the hosts and ports above, from each LAN interface and from here."""
    ends = [*product(PORTS, PORTS)]
    bare = [
        FlowFacts(protocol, Endpoint(source, ours), Endpoint(destination, theirs), interface)
        for hosts in HOSTS.values()
        for source, destination in product(hosts, hosts)
        for protocol in Protocol
        for ours, theirs in (ends if protocol is not Protocol.ICMP else [(0, 0)])
        for interface in (*INTERFACES, "")
    ]
    details = cycle(product(MACS, DSCPS, UIDS))
    return [
        flow._replace(mac=mac, dscp=dscp)
        if flow.interface
        else flow._replace(dscp=dscp, owner=Owner(uid, GID))
        for flow, (mac, dscp, uid) in zip(bare, details, strict=False)
    ]
