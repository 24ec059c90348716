"""Conversations of datagrams: who carries them, who does next, and what is held against whom."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.breaker import WINDOW
from gateway.decision import REJECT
from gateway.errors import UpstreamFailure
from gateway.facts import FactFinder
from gateway.flow import CloseReason, Endpoint
from gateway.groups.standing import Standing
from gateway.kernel.datagrams import Batch, Way
from gateway.kernel.sockets import SocketFactory
from gateway.kernel.udp_sockets import ends_of
from gateway.outbound.board import Board
from gateway.outbound.group import GroupOutbound
from gateway.outbound.reject import RejectOutbound
from gateway.policy.engine import Policy
from gateway.policy.names import NamePatterns
from gateway.policy.rule import CompiledRule
from gateway.routing import FlowTimeouts, OwnTraffic, Routing
from gateway.sniffing import SniffLimits
from gateway.trial import HELD_S, MOST_HELD
from gateway.udp.dispatcher import MOST_KEYS, UNHEARD_S, Datagrams
from gateway.udp.face import Face
from gateway.udp.flow import STREAM_BYTES, UdpFlow, UdpSettings

CLIENT = Endpoint("192.168.20.5", 40000)
FAR = Endpoint("198.51.100.1", 9999)
OTHER = Endpoint("198.51.100.2", 9999)
REFUSED = UpstreamFailure.REFUSED
SETTINGS = UdpSettings(60, 10, 300, 1000, 100, symmetric=False)


class Leg:
    """Keeps all that is sent by it, as a leg does that is not there yet."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.sock: socket.socket | None = None
        self.kept: list[tuple[Way, bytes]] = []
        self.open = True

    @property
    def sent(self) -> list[bytes]:
        return [datagram for _, datagram in self.kept]

    def way(self, target: Endpoint, route: Any) -> Way:
        del route
        return Way(str(target).encode(), None)

    def keep_one(self, way: Way, datagram: bytes) -> int:
        self.kept.append((way, datagram))
        return len(datagram)

    def forget(self, route: Any) -> None:
        """It has no routes."""

    def close(self) -> None:
        assert self.open
        self.open = False

    def give_up(self, detail: str) -> None:
        self.fail(UpstreamFailure.TIMEOUT, detail)

    def fail(self, failure: UpstreamFailure, detail: str = "gone") -> None:
        self.close()
        self.owner.leg_failed(failure, detail, self.kept)


class Outbound:
    """An outbound; ``now`` is raised instead of a leg."""

    by_name = False

    def __init__(self, name: str, now: OSError | None = None) -> None:
        self.name = name
        self.now = now
        self.carries_udp: bool | None = True
        self.legs: list[Leg] = []

    def carrier(self, client: Endpoint, tried: Sequence[str] = ()) -> Outbound:
        del client, tried
        return self

    def associate(self, family: int, client: Endpoint, owner: Any, batch: Batch) -> Leg:
        del family, client, batch
        if self.now is not None:
            raise self.now
        self.legs.append(Leg(owner))
        return self.legs[-1]


class Told:
    """Speaks to clients as others; notes of whom it told an error."""

    def __init__(self) -> None:
        self.errors: list[Endpoint] = []

    def tell_of_datagram(self, error: Any, client: Endpoint, *_: Any) -> bool:
        del error
        self.errors.append(client)
        return True

    def lease(self, remote: Endpoint) -> Told:
        del remote
        return self

    def release(self, reply: Any) -> None:
        """It is shared."""

    def send(self, *_: Any) -> bool:
        return True


class Rig:
    """The pipeline, whose clock and timers a test moves."""

    def __init__(
        self, *outbounds: Outbound, own: OwnTraffic, names: tuple[str, ...] = (), **wanted: Any
    ) -> None:
        """Rules ask for ``names`` after those that lead to ``a``."""
        board = Board(None)  # type: ignore[arg-type]
        members = {each.name: each for each in outbounds}
        board.adopt({"g": Standing(tuple(members))}, members, 10.0)  # type: ignore[arg-type]
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.told = Told()
        self.closed: list[UdpFlow] = []
        rules = [
            CompiledRule(0, "other", "a", destination=(ip_network(f"{OTHER.host}/32"),)),
            CompiledRule(1, "none", REJECT, destination=(ip_network("203.0.113.66/32"),)),
            CompiledRule(2, "all", "g"),
        ]
        if names:
            rules.insert(1, CompiledRule(1, "names", "a", names=NamePatterns.of(names)))
        ways: dict[str, Any] = {
            "g": GroupOutbound("g", board),
            REJECT: RejectOutbound(REJECT),
            **members,
        }
        routing = Routing(Policy(rules), ways, FlowTimeouts(1, 1, 1), SniffLimits(), FactFinder())
        self.desk = Datagrams(
            SocketFactory(None),
            routing,
            SETTINGS._replace(**wanted),
            own,
            self.closed.append,
            self._call_later,  # type: ignore[arg-type]
        )
        self.desk.face = Face(self.told, self.told)  # type: ignore[arg-type]
        self._batch = Batch()

    def _call_later(self, seconds: float, call: Callable[[], None]) -> None:
        self.timers.append((seconds, call))

    def send(
        self,
        data: bytes,
        to: Endpoint = FAR,
        client: Endpoint = CLIENT,
        dscp: int | None = None,
    ) -> None:
        """As the listener does."""
        batch, desk = self._batch, self.desk
        batch.put(0, data)
        source, far = ip_address(client.host).packed, ip_address(to.host).packed
        ends = ends_of(source, client.port, far, to.port, dscp)
        conversation = desk.known.get(ends) or desk.arrived(ends, batch, 0)
        if conversation is not None:
            conversation.up(batch, 0, 1)

    def elapse(self) -> None:
        """Call what waits now."""
        waiting, self.timers = self.timers, []
        for _, call in waiting:
            call()

    @property
    def flow(self) -> UdpFlow:
        (flow,) = self.desk.live
        return flow


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(*outbounds: Outbound, own: OwnTraffic = OwnTraffic(), **wanted: Any) -> Rig:  # noqa: B008
        made.append(Rig(*outbounds, own=own, **wanted))
        return made[-1]

    yield make
    for each in made:
        each.desk.close_all()
        assert not each.desk.live_count
        assert not each.desk._mappings


# --- groups ----------------------------------------------------------------------------------


def test_what_a_member_kept_goes_by_the_next(rig) -> None:
    a, b = Outbound("a"), Outbound("b")
    one = rig(a, b)
    one.send(b"first")
    one.send(b"second")
    one.send(b"elsewhere", FAR._replace(port=8888))
    a.legs[0].fail(REFUSED)
    assert b.legs[0].sent == [b"first", b"second", b"elsewhere"]
    assert len(b.legs) == 1, "one address for all that the client talks to"
    one.send(b"third")
    assert b.legs[0].sent[-1] == b"third"
    assert [flow.member for flow in one.desk.live] == ["b", "b"]
    assert [flow.bytes_up for flow in one.desk.live] == [16, 9]
    assert (one.closed, one.told.errors) == ([], [])
    assert one.desk.counters["group_failovers"] == 2


def test_a_member_that_is_silent_gets_the_next_one_instead(rig) -> None:
    """Where it is not there in time; the last one is waited for."""
    a, b = Outbound("a"), Outbound("b")
    one = rig(a, b)
    one.send(b"first")
    one.elapse()
    assert b.legs[0].sent == [b"first"]
    assert not a.legs[0].open
    one.elapse()
    one.elapse()
    assert b.legs[0].open
    assert one.closed == []


def test_a_member_that_is_there_is_not_left(rig) -> None:
    a, b = Outbound("a"), Outbound("b")
    one = rig(a, b)
    one.send(b"first")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        a.legs[0].sock = sock
        one.elapse()
    assert b.legs == []


def test_a_member_that_has_no_way_at_once(rig) -> None:
    a, b = Outbound("a", OSError(errno.ENETUNREACH, "no route")), Outbound("b")
    one = rig(a, b)
    one.send(b"first")
    assert b.legs[0].sent == [b"first"]
    assert one.flow.member == "b"


def test_all_fail(rig) -> None:
    """Whoever is last says why; the client is told at once, and again if it goes on."""
    a, b = Outbound("a"), Outbound("b")
    one = rig(a, b)
    one.send(b"first")
    a.legs[0].fail(REFUSED, "a is gone")
    b.legs[0].fail(UpstreamFailure.DENIED, "b lets nobody in")
    (flow,) = one.closed
    assert (flow.reason, flow.detail) == (CloseReason.UPSTREAM_DENIED, "b lets nobody in")
    one.send(b"second")
    assert one.told.errors == [CLIENT, CLIENT]
    assert (len(a.legs), len(b.legs)) == (1, 1)
    assert (one.desk.counters["group_failovers"], one.desk.counters["group_exhausted"]) == (1, 1)


@pytest.mark.parametrize("failure", [UpstreamFailure.REJECTED, UpstreamFailure.RESOURCES])
def test_what_no_other_member_would_do_better(rig, failure) -> None:
    a, b = Outbound("a"), Outbound("b")
    one = rig(a, b)
    one.send(b"first")
    a.legs[0].fail(failure)
    assert len(one.closed) == 1
    assert b.legs == []


def test_an_outbound_that_is_no_group_has_no_other(rig) -> None:
    a, b = Outbound("a"), Outbound("b")
    one = rig(a, b)
    one.send(b"first", OTHER)
    a.legs[0].fail(REFUSED)
    assert one.closed[0].reason is CloseReason.UPSTREAM_REFUSED
    assert b.legs == []


def test_a_way_that_a_reload_took_is_not_looked_for(rig) -> None:
    a, b = Outbound("a"), Outbound("b")
    one = rig(a, b)
    one.send(b"first")
    one.desk.routing = replace(one.desk.routing, outbounds={})
    a.legs[0].fail(REFUSED)
    assert one.closed[0].reason is CloseReason.UPSTREAM_REFUSED


def test_a_flow_that_ended_meanwhile_sends_no_more(rig) -> None:
    a, b = Outbound("a"), Outbound("b")
    one = rig(a, b)
    one.send(b"first")
    one.send(b"elsewhere", FAR._replace(port=8888))
    next(iter(one.desk.live)).close(CloseReason.EVICTED)
    a.legs[0].fail(REFUSED)
    assert b.legs[0].sent == [b"elsewhere"]


def test_a_member_that_is_down_and_silent_is_left(rig, monkeypatch) -> None:
    """What has been answered lately stays, whatever probes say of the member."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    a, b = Outbound("a"), Outbound("b")
    one = rig(a, b)
    one.send(b"first")
    one.send(b"to no group", OTHER)
    for answered in (True, False):
        now[0] += UNHEARD_S + 1
        for flow in one.desk.live:
            flow.bytes_up += 1
            flow.bytes_down += answered
        one.desk.expire(now[0])
        one.desk.leave(lambda *asked: asked == ("g", "b"))
        assert len(b.legs) == 0
        one.desk.leave(lambda *asked: asked == ("g", "a"))
        assert len(b.legs) == (0 if answered else 1)
    one.send(b"on")
    assert b.legs[0].sent == [b"on"]
    assert [flow.member for flow in one.desk.live] == ["b", ""]
    assert one.closed == []


@pytest.mark.parametrize(
    ("port", "moved", "limit"),
    [
        (53, 1 << 20, SETTINGS.idle_dns),
        (443, 0, SETTINGS.idle_stream),
        (9999, STREAM_BYTES, SETTINGS.idle_stream),
        (9999, STREAM_BYTES - 1, SETTINGS.idle),
    ],
)
def test_how_long_a_flow_may_be_quiet(rig, monkeypatch, port, moved, limit) -> None:
    """By its port, and by what has gone each way: a call is quiet longer than a question."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    one = rig(Outbound("a"))
    one.send(b"first", FAR._replace(port=port))
    one.flow.bytes_up = one.flow.bytes_down = moved
    one.desk.expire(now[0])
    now[0] += limit - 0.1
    one.desk.expire(now[0])
    assert one.desk.live_count == 1
    now[0] += 0.2
    one.desk.expire(now[0])
    assert [flow.reason for flow in one.closed] == [CloseReason.IDLE_TIMEOUT]


# --- who may speak ----------------------------------------------------------------------------


def test_a_stranger_takes_nobody_s_place(rig) -> None:
    """Anybody may answer where a client's socket is seen, and anybody can be many."""
    a = Outbound("a")
    one = rig(a, flows_per_device=3)
    one.send(b"first")
    one.send(b"second", client=from_port(1))
    mapping = a.legs[0].owner
    assert mapping.stranger(Endpoint("192.0.2.77", 7777)) is not None
    assert mapping.stranger(Endpoint("192.0.2.78", 7777)) is None
    assert one.desk.counters["udp_dropped_stranger"] == 1
    assert one.closed == []
    one.send(b"third", client=from_port(2))
    assert [flow.reason for flow in one.closed] == [CloseReason.EVICTED], "a client does"


def test_whom_a_client_must_not_speak_to_does_not_speak_to_it(rig) -> None:
    a = Outbound("a")
    one = rig(a)
    one.send(b"first")
    mapping = a.legs[0].owner
    forbidden = Endpoint("203.0.113.66", 7777)
    assert mapping.stranger(forbidden) is None
    assert mapping.stranger(forbidden._replace(host="203.0.113.67")) is not None


def test_nobody_speaks_as_one_of_us_or_as_no_host(rig) -> None:
    a = Outbound("a")
    lan = (ip_network("192.168.20.0/24"), ip_network("2001:db8:20::/64"))
    one = rig(a, own=OwnTraffic(frozenset({"203.0.113.2"}), lan=lan))
    one.send(b"first")
    mapping = a.legs[0].owner
    nobody = ("127.0.0.1", "0.0.0.0", "224.0.0.1", "fe80::1", "a.example")
    for host in ("203.0.113.2", "192.168.20.7", "2001:db8:20::7", *nobody):
        assert mapping.stranger(Endpoint(host, 7777)) is None
    assert mapping.stranger(Endpoint("2001:db8:21::7", 7777)) is not None


def test_a_far_end_that_speaks_while_its_client_is_looked_into(rig, initials) -> None:
    """Two that reach out to each other have one conversation, and nothing is lost of it."""
    a = Outbound("a")
    one = rig(a, names=("+.video.example",))
    one.send(b"first", OTHER)
    one.send(initials[0], FAR)
    assert a.legs[0].sent == [b"first"], "the other waits for its name"
    spoken = a.legs[0].owner.stranger(FAR)
    for each in initials[1:]:
        one.send(each, FAR)
    assert a.legs[0].sent == [b"first", *initials]
    assert spoken in one.desk.live
    assert one.desk.live_count == 2
    one.send(b"more", FAR)
    assert a.legs[0].sent[-1] == b"more"


def test_a_client_whose_traffic_class_changes_while_it_is_looked_into(rig, initials) -> None:
    a = Outbound("a")
    one = rig(a, names=("+.video.example",))
    one.send(initials[0], dscp=0)
    one.send(initials[0], dscp=8)
    for dscp in (0, 8):
        for each in initials[1:]:
            one.send(each, dscp=dscp)
    assert a.legs[0].sent == 2 * initials
    assert one.desk.live_count == 1
    assert len(one.flow.keys) == 2


def test_ways_of_coming_are_many_but_not_kept_all(rig) -> None:
    a = Outbound("a")
    one = rig(a)
    for dscp in range(64):
        one.send(b"%d" % dscp, dscp=dscp)
    assert len(a.legs[0].sent) == 64
    assert len(one.flow.keys) == MOST_KEYS


# --- what goes round, and what only looks like it -----------------------------------------------


def from_port(number: int) -> Endpoint:
    return CLIENT._replace(port=30000 + number)


def closed_as_loop(one: Rig) -> int:
    return one.desk.counters["udp_closed_loop"]


def test_what_comes_back_as_soon_as_it_is_let_go_goes_round(rig) -> None:
    a = Outbound("a")
    one = rig(a)
    for number in range(WINDOW):
        one.send(b"round", client=from_port(number))
    assert len(a.legs) == WINDOW - 1, "the last is held back"
    assert one.timers[0][0] >= HELD_S
    assert closed_as_loop(one) == 0
    one.elapse()
    assert a.legs[-1].sent == [b"round"]
    one.send(b"round", client=from_port(WINDOW))
    assert closed_as_loop(one) == WINDOW + 1
    (said,) = {flow.detail for flow in one.closed} - {""}
    assert f"{{source: {CLIENT.host}, to: direct}}" in said
    assert not one.desk.live_count
    one.elapse()
    assert closed_as_loop(one) == WINDOW + 1


def test_a_client_that_goes_on_by_itself_loses_nothing(rig) -> None:
    """Reports to whom never answers: other ones come while some are held back."""
    a = Outbound("a")
    one = rig(a, flows_per_device=1000)
    count = 3 * WINDOW
    for number in range(count):
        one.send(b"report", client=from_port(number))
    one.elapse()
    assert sum(len(leg.sent) for leg in a.legs) == count
    assert closed_as_loop(one) == 0


def test_a_client_that_asked_them_all_at_once_loses_nothing(rig) -> None:
    a = Outbound("a")
    one = rig(a)
    for number in range(WINDOW):
        one.send(b"anybody?", client=from_port(number))
    one.send(b"still there?", client=from_port(WINDOW - 1))
    one.elapse()
    assert a.legs[-1].sent == [b"anybody?", b"still there?"]
    one.elapse()
    one.send(b"anybody?", client=from_port(WINDOW))
    assert closed_as_loop(one) == 0
    assert len(a.legs) == WINDOW + 1


def test_answers_that_come_late_clear_a_client(rig) -> None:
    a = Outbound("a")
    one = rig(a)
    for number in range(WINDOW):
        one.send(b"question", client=from_port(number))
    for flow in one.desk.live:
        flow.bytes_down = 1
    one.elapse()
    one.send(b"question", client=from_port(WINDOW))
    assert closed_as_loop(one) == 0
    assert len(a.legs) == WINDOW + 1


def test_a_flow_that_ended_while_it_was_held_is_left(rig) -> None:
    a = Outbound("a")
    one = rig(a)
    for number in range(WINDOW):
        one.send(b"round", client=from_port(number))
    list(one.desk.live)[-1].close(CloseReason.EVICTED)
    one.desk.routing = replace(one.desk.routing, outbounds={})
    one.elapse()
    assert len(a.legs) == WINDOW - 1


def test_a_way_that_a_reload_took_while_a_flow_was_held(rig) -> None:
    one = rig(Outbound("a"))
    for number in range(WINDOW):
        one.send(b"round", client=from_port(number))
    one.desk.routing = replace(one.desk.routing, outbounds={})
    one.elapse()
    assert one.closed[0].reason is CloseReason.REJECTED
    assert one.told.errors == [from_port(WINDOW - 1)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["send", "elapse", "answer", "end"]), max_size=200))
def test_whatever_happens_nobody_is_forgotten(steps: list[str]) -> None:
    """Each flow lives or has ended, and no more are held back than may be."""
    a = Outbound("a")
    one = Rig(a, own=OwnTraffic(), flows_per_device=1000)
    sent = 0
    for step in steps:
        if step == "send":
            one.send(b"alike", client=from_port(sent))
            sent += 1
        elif step == "elapse":
            one.elapse()
        elif one.desk.live_count:
            flow = next(iter(one.desk.live))
            if step == "answer":
                flow.bytes_down = 1
            else:
                flow.close(CloseReason.EVICTED)
        waiting = [flow for flow in one.desk.live if flow.mapping is None]
        assert len(waiting) <= MOST_HELD
    assert one.desk.live_count + len(one.closed) == sent
    for _ in range(2):
        one.elapse()
    assert all(flow.mapping for flow in one.desk.live)
    one.desk.close_all()


CLIENTS = [from_port(number) for number in range(3)]
FAR_ENDS = [FAR, OTHER, Endpoint("203.0.113.66", 53), Endpoint("198.51.100.3", 443)]
STEPS = st.one_of(
    st.tuples(
        st.just("send"),
        st.sampled_from(CLIENTS),
        st.sampled_from(FAR_ENDS),
        st.integers(0, 3),
        st.sampled_from([None, 0, 46]),
    ),
    st.tuples(st.just("speak"), st.integers(0, 9), st.sampled_from(FAR_ENDS)),
    st.tuples(st.just("fail"), st.integers(0, 9), st.sampled_from(UpstreamFailure)),
    st.tuples(st.just("end"), st.integers(0, 9), st.sampled_from(CloseReason)),
    st.tuples(st.just("leave"), st.sampled_from("ab")),
    st.tuples(st.sampled_from(["elapse", "expire"])),
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_happens_all_know_of_the_same_flows(
    initials: list[bytes], data: st.DataObject
) -> None:
    a, b = Outbound("a"), Outbound("b")
    now = [1000.0]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(time, "monotonic", lambda: now[0])
        one = Rig(a, b, own=OwnTraffic(), names=("+.video.example",), flows_per_device=5, flows=8)
        desk = one.desk
        for step in data.draw(st.lists(STEPS, max_size=40)):
            now[0] += 0.5
            legs = [leg for leg in (*a.legs, *b.legs) if leg.open]
            match step:
                case ("send", client, to, which, dscp):
                    one.send((*initials[:3], b"else")[which], to, client, dscp)
                case ("speak", number, far) if legs:
                    legs[number % len(legs)].owner.stranger(far)
                case ("fail", number, failure) if legs:
                    legs[number % len(legs)].fail(failure)
                case ("end", number, reason) if desk.live_count:
                    list(desk.live)[number % desk.live_count].close(reason)
                case ("leave", name):
                    desk.leave(lambda _, member, name=name: member == name)
                case ("elapse",):
                    one.elapse()
                case ("expire",):
                    now[0] += 100
                    desk.expire(now[0])
            live = set(desk.live)
            assert len(live) <= 8
            assert all(flow.reason is None for flow in live)
            known = {flow for flow in desk.known.values() if isinstance(flow, UdpFlow)}
            assert known <= live
            mapped = [flow for each in desk._mappings.values() for flow in each.flows.values()]
            assert sorted(mapped, key=id) == sorted(live, key=id)
            assert all(desk._flows.find(*flow.facts[1:3]) is flow for flow in live)
            used = {id(each.leg) for each in desk._mappings.values()}
            assert used == {id(leg) for leg in (*a.legs, *b.legs) if leg.open}
        desk.close_all()
        assert not desk._mappings
        assert not any(leg.open for leg in (*a.legs, *b.legs))
