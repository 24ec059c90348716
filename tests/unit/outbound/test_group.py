"""Groups at work: who is tried, what the flow gets, and whom it is held against."""

from __future__ import annotations

import asyncio
import errno
import socket
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.errors import UpstreamFailure
from gateway.flow import Endpoint, FlowFacts, Protocol
from gateway.groups.standing import Standing, paths
from gateway.kernel.sockets import SocketFactory, SocketOptions
from gateway.outbound import board as board_module
from gateway.outbound.board import Board
from gateway.outbound.direct import DirectOutbound
from gateway.outbound.group import GroupOutbound
from gateway.outbound.reject import RejectOutbound

CLIENT = Endpoint("192.168.20.5", 40000)
FACTS = FlowFacts(Protocol.TCP, CLIENT, Endpoint("203.0.113.7", 443))
REFUSED, TIMEOUT = UpstreamFailure.REFUSED, UpstreamFailure.TIMEOUT


@dataclass
class Attempt:
    """A leg that a fake outbound opens."""

    requester: Any
    member: str = ""
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Fake:
    """An outbound whose legs the test brings to an end; ``now``: fails at once, as this."""

    name: str
    now: tuple[UpstreamFailure, str, bool] | None = None
    carries_udp: bool | None = True
    by_name: bool = False
    legs: list[Attempt] = field(default_factory=list)
    owners: list[Any] = field(default_factory=list)

    def open(self, _facts: FlowFacts, requester: Any) -> Attempt | None:
        if self.now is not None:
            requester.failed(*self.now)
            return None
        self.legs.append(Attempt(requester))
        return self.legs[-1]

    def carrier(self, _client: Endpoint) -> Fake:
        return self

    def associate(self, _family: int, _client: Endpoint, owner: Any, _batch: Any) -> str:
        self.owners.append(owner)
        return f"leg of {self.name}"

    def ping(self, host: str) -> str:
        return f"{host} by {self.name}"

    @property
    def asked(self) -> Any:
        """The requester of the newest leg."""
        return self.legs[-1].requester


class Client:
    """Who asked the group."""

    def __init__(self) -> None:
        self.answers: list[tuple[object, ...]] = []

    def first_bytes(self) -> bytes:
        return b"hello"

    def connected(self, upstream, surplus, sent=0, _edges=0) -> None:
        self.answers.append(("connected", upstream, surplus, sent))

    def failed(self, failure, detail, replied=False) -> None:
        self.answers.append((failure, detail, replied))


class Rig:
    """A group of three, in order, and one flow through it."""

    def __init__(self, plane, *outbounds: Any, **standings: Standing) -> None:
        self.plane = plane
        self.outbounds = {each.name: each for each in outbounds or map(Fake, "abc")}
        self.board = Board(plane.reactor)
        standings = standings or {"g": Standing(tuple(self.outbounds))}
        self.board.adopt(standings, self.outbounds, 10.0)
        self.group = GroupOutbound("g", self.board)
        self.client = Client()

    def __getattr__(self, name: str) -> Any:
        return self.outbounds[name]

    def flow(self):
        """One more; the client is who asked last."""
        self.client = Client()
        return self.group.open(FACTS, self.client)

    @property
    def failures(self) -> dict[str, int]:
        return dict(self.board.report().failures)


@pytest.fixture
def rig(plane):
    return lambda *outbounds, **standings: Rig(plane, *outbounds, **standings)


def test_a_flow_goes_by_the_first_member(rig) -> None:
    one = rig()
    attempt = one.flow()
    assert attempt.member == "a"
    one.a.asked.connected("socket", b"surplus", 0, 0)
    assert one.client.answers == [("connected", "socket", b"surplus", 0)]
    assert (one.failures, one.board.counters) == ({}, {})
    assert one.board.report().used == {"g": 1}


def test_the_next_member_carries_a_flow_that_the_first_could_not(rig) -> None:
    one = rig()
    attempt = one.flow()
    one.a.asked.failed(REFUSED, "connection refused")
    assert one.client.answers == []
    assert attempt.member == "b"
    one.b.asked.connected("socket", b"")
    assert one.client.answers == [("connected", "socket", b"", 0)]
    assert (one.failures, one.board.counters) == ({"a": 1}, {"group_failovers": 1})
    one.flow()
    assert len(one.b.legs) == 2, "the next flow goes by the second at once"


def test_a_suspicion_ends_by_itself_and_by_a_good_probe(rig, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(board_module.time, "monotonic", lambda: now[0])
    one = rig()
    one.board.suspect(one.a)
    assert one.flow().member == "b"
    now[0] += board_module.SUSPECT_S
    assert one.flow().member == "a"
    one.board.suspect(one.a)
    one.board.stand(one.board.standings, ("b",))
    assert one.flow().member == "b"
    one.board.stand(one.board.standings, ("a",))
    assert one.flow().member == "a"


def test_members_that_fail_at_once(rig) -> None:
    one = rig(
        RejectOutbound("a", UpstreamFailure.UNREACHABLE, "no route"),
        Fake("b", (REFUSED, "nobody there", False)),
        Fake("c"),
        Fake("d"),
    )
    attempt = one.flow()
    assert attempt.member == "c"
    one.c.asked.failed(TIMEOUT, "")
    assert one.client.answers == [
        (UpstreamFailure.UNREACHABLE, "a: no route; b: nobody there; c: timeout", False)
    ], "three are tried, and the flow ends as the first did"
    assert one.board.counters == {"group_failovers": 2, "group_exhausted": 1}
    assert one.failures == {"a": 1, "b": 1, "c": 1}


def test_all_fail_at_once(rig) -> None:
    one = rig(*(Fake(name, (REFUSED, "no", False)) for name in "ab"))
    assert one.flow() is None
    assert one.client.answers == [(REFUSED, "a: no; b: no", False)]


def test_what_the_destination_says_is_the_flows_end(rig) -> None:
    one = rig()
    one.flow()
    one.a.asked.failed(REFUSED, "connection refused", True)
    assert one.client.answers == [(REFUSED, "a: connection refused", True)]
    assert (one.b.legs, one.failures) == ([], {})


def test_another_member_may_do_what_one_will_not(rig) -> None:
    one = rig()
    one.flow()
    one.a.asked.failed(UpstreamFailure.DENIED, "not allowed by ruleset", True)
    assert len(one.b.legs) == 1
    assert one.failures == {}, "it has answered"


@pytest.mark.parametrize("failure", [UpstreamFailure.RESOURCES, UpstreamFailure.REJECTED])
def test_what_no_other_member_would_do_better(rig, failure) -> None:
    one = rig()
    one.flow()
    one.a.asked.failed(failure, "")
    assert one.client.answers == [(failure, f"a: {failure}", False)]
    assert (one.b.legs, one.failures) == ([], {})


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(board_module, "PATIENCE_S", 0.01)


def test_one_that_is_silent_gets_the_next_one_beside_it(plane, rig, impatient) -> None:
    one = rig()

    async def scenario() -> None:
        one.flow()
        await plane.until(lambda: one.b.legs)
        one.b.asked.connected("socket", b"")

    plane.run(scenario())
    assert one.client.answers == [("connected", "socket", b"", 0)]
    assert one.a.legs[0].cancelled
    assert one.failures == {"a": 1}, "it was asked first, and did not answer"


def test_one_that_is_slow_may_still_win(plane, rig, impatient) -> None:
    one = rig()

    async def scenario() -> None:
        attempt = one.flow()
        await plane.until(lambda: one.c.legs)
        one.a.asked.connected("socket", b"")
        assert attempt.member == "a"

    plane.run(scenario())
    assert one.client.answers == [("connected", "socket", b"", 0)]
    assert one.b.legs[0].cancelled
    assert one.c.legs[0].cancelled
    assert one.failures == {}


def test_all_that_were_asked_must_have_failed(plane, rig, impatient) -> None:
    one = rig()

    async def scenario() -> None:
        one.flow()
        await plane.until(lambda: one.c.legs)

    plane.run(scenario())
    one.c.asked.failed(TIMEOUT, "late")
    one.a.asked.failed(REFUSED, "no")
    assert one.client.answers == []
    one.b.asked.failed(TIMEOUT, "late")
    assert one.client.answers == [(TIMEOUT, "c: late; a: no; b: late", False)]


def test_a_client_that_goes_takes_all_attempts_along(plane, rig, monkeypatch) -> None:
    timers = []

    def call_later(_delay_s: float, callback) -> asyncio.TimerHandle:
        timers.append((callback, plane.loop.call_later(1000, callback)))
        return timers[-1][1]

    monkeypatch.setattr(plane.reactor, "call_later", call_later)
    one = rig()
    attempt = one.flow()
    ((lose_patience, _),) = timers
    lose_patience()
    assert len(one.b.legs) == 1
    attempt.cancel()
    assert one.a.legs[0].cancelled
    assert one.b.legs[0].cancelled
    assert timers[1][1].cancelled(), "nobody else is tried"
    assert one.client.answers == one.c.legs == []


def test_first_bytes_go_to_a_member_that_no_other_follows(plane, rig, impatient) -> None:
    one = rig()
    one.flow()
    assert one.a.asked.first_bytes() == b""
    one.a.asked.failed(REFUSED, "")
    one.b.asked.failed(REFUSED, "")
    assert one.c.asked.first_bytes() == b"hello"
    alone = rig(Fake("a"), g=Standing(("a",)))
    alone.flow()
    assert alone.a.asked.first_bytes() == b"hello"

    async def scenario() -> None:
        one.flow()
        await plane.until(lambda: len(one.c.legs) == 2)

    plane.run(scenario())
    assert one.c.asked.first_bytes() == b"", "two others may still carry the flow"


def test_real_connections(plane) -> None:
    """The first member's address cannot be bound here: the second one connects."""
    server, where = plane.server()
    factory = SocketFactory(None)

    def direct(name: str, *sources: str) -> DirectOutbound:
        return DirectOutbound(name, plane.reactor, factory, SocketOptions(sources=sources))

    one = Rig(plane, direct("a", "203.0.113.1"), direct("b"))
    client = Client()

    async def scenario() -> None:
        attempt = one.group.open(FACTS._replace(destination=where), client)
        await plane.until(lambda: client.answers)
        assert attempt.member == "b"
        await plane.accept(server)

    plane.run(scenario())
    (answer,) = client.answers
    assert answer[0] == "connected"
    plane.own(answer[1])
    assert one.failures == {"a": 1}


def test_a_refusal_by_the_destination_of_a_direct_member(plane) -> None:
    where = plane.closed_port()
    factory = SocketFactory(None)
    members = [DirectOutbound(n, plane.reactor, factory, SocketOptions()) for n in "ab"]
    one = Rig(plane, *members)
    client = Client()

    async def scenario() -> None:
        one.group.open(FACTS._replace(destination=where), client)
        await plane.until(lambda: client.answers)

    plane.run(scenario())
    assert client.answers == [(REFUSED, "a: Connection refused", True)]
    assert one.failures == {}


def test_names_and_groups_within_groups(rig) -> None:
    one = rig(
        Fake("a", by_name=True),
        Fake("b"),
        g=Standing(("inner", "b")),
        inner=Standing(("a",)),
    )
    attempt = one.flow()
    assert attempt.member == "inner>a"
    one.a.asked.failed(REFUSED, "")
    assert attempt.member == "b"
    assert one.group.by_name
    assert not rig().group.by_name


def test_flows_that_are_to_end_with_the_choice(rig) -> None:
    before = {"g": Standing(("inner", "b"), interrupt=True), "inner": Standing(("a", "b"))}
    one = rig(Fake("a"), Fake("b"), **before)
    one.board.stand({**before, "inner": Standing(("b", "a"))}, ())
    assert not one.board.interrupted(before, "g", "inner>a"), "the inner one does not interrupt"
    one.board.stand({**before, "g": Standing(("b", "inner"), interrupt=True)}, ())
    assert one.board.interrupted(before, "g", "inner>a")
    assert not one.board.interrupted(before, "g", "b"), "it goes by the new member already"
    one.board.stand(before, ())
    assert not one.board.interrupted(before, "g", "b"), "the group has not moved"


def test_what_is_said_of_another_configuration_is_left_aside(rig) -> None:
    one = rig()
    one.board.stand({"new": Standing(("a",)), "g": Standing(("nobody", "a"))}, ())
    assert one.flow().member == "a"
    assert one.board.standings == {"g": Standing(("a", "b", "c"))}
    one.board.stand({"g": Standing(("b",), ("a", "c"))}, ())
    assert one.flow().member == "b"


# --- datagrams -------------------------------------------------------------------------------


def test_members_without_udp_are_passed_over(rig) -> None:
    one = rig(Fake("a", carries_udp=False), Fake("b"), Fake("c"))
    carrier = one.group.carrier(CLIENT)
    assert carrier.name == "b"
    assert carrier.associate(socket.AF_INET, CLIENT, None, None) == "leg of b"
    assert one.group.carrier(CLIENT) is carrier, "the same for all that the client talks to"
    assert one.flow().member == "a", "TCP goes by the first"


@pytest.mark.parametrize(
    ("members", "group"),
    [((False, True), True), ((False, None), None), ((False, False), False), ((None, True), True)],
)
def test_a_group_carries_udp_where_a_member_does(rig, members, group) -> None:
    one = rig(*(Fake(n, carries_udp=c) for n, c in zip("ab", members, strict=True)))
    assert one.group.carries_udp is group


def test_a_choice_alone_says_whether_a_select_group_carries_udp(rig) -> None:
    one = rig(Fake("a", carries_udp=False), Fake("b"), g=Standing(("a",)))
    assert one.group.carries_udp is False
    one.board.stand({"g": Standing(("b",))}, ())
    assert one.group.carries_udp is True


def test_echo_requests_go_by_the_member_that_flows_take(rig) -> None:
    one = rig()
    assert one.group.ping("192.0.2.1") == one.group.carrier(CLIENT).ping("192.0.2.1")
    one.board.suspect(one.a)
    assert one.group.ping("192.0.2.1") == "192.0.2.1 by b"


class Owner:
    """Whose leg it is."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def leg_failed(self, failure, detail, kept=()) -> None:
        self.told.append((failure, detail, *kept))

    def stranger(self, remote) -> str:
        return f"route of {remote}"


def test_a_leg_that_fails_is_held_against_the_member(rig) -> None:
    one, owner = rig(), Owner()
    one.group.associate(socket.AF_INET, CLIENT, owner, None)
    watched = one.a.owners[0]
    assert watched.stranger("far") == "route of far"
    watched.leg_failed(UpstreamFailure.DENIED, "grants none")
    assert one.group.carrier(CLIENT).name == "a", "it has answered"
    watched.leg_failed(TIMEOUT, "late", ["unsent"])
    assert owner.told == [(UpstreamFailure.DENIED, "grants none"), (TIMEOUT, "late", "unsent")]
    assert one.group.carrier(CLIENT).name == "b"


def test_a_leg_that_cannot_be_had_here_is_held_against_the_member(rig, monkeypatch) -> None:
    one = rig()

    def unreachable(*_: object) -> None:
        raise OSError(errno.ENETUNREACH, "no way out")

    monkeypatch.setattr(one.a, "associate", unreachable)
    with pytest.raises(OSError, match="no way out"):
        one.group.associate(socket.AF_INET, CLIENT, Owner(), None)
    assert one.group.carrier(CLIENT).name == "b"


def test_members_that_were_tried_are_passed_over(rig) -> None:
    one = rig()
    used = one.board.used[one.group.name]
    assert one.group.carrier(CLIENT, {"a"}).name == "b"
    assert one.group.carrier(CLIENT, {"a", "b", "c"}).name == "a", "there is no other"
    assert one.board.used[one.group.name] == used, "it is the same flow"


def test_a_member_is_down_only_where_another_is_not(rig) -> None:
    one = rig(h=Standing(("a",), ("b",)), g=Standing(("h",), ("c",)))
    down = {path for path in ("h>a", "h>b", "h", "c") if one.board.is_down("g", path)}
    assert down == {"h>b", "c"}
    one.board.stand({"g": Standing((), ("h", "c"))}, ())
    assert not one.board.is_down("g", "c")
    assert not one.board.is_down("unknown", "c")


def test_clients_are_spread_and_stay(rig) -> None:
    one = rig(g=Standing(("a", "b", "c"), (), "source"))
    clients = [Endpoint(f"192.168.20.{host}", 1000) for host in range(32)]
    taken = {client: one.group.carrier(client) for client in clients}
    assert {each.name for each in taken.values()} == {"a", "b", "c"}
    for client, carrier in taken.items():
        assert one.group.carrier(client._replace(port=2000)) is carrier
        facts = FACTS._replace(source=client)
        assert one.board.for_flow("g", facts)[0].member == carrier.name


def test_groups_that_spread_by_both_ends(rig, monkeypatch) -> None:
    """What is kept in mind of flows that are alike is what would be found anew."""
    monkeypatch.setattr(board_module, "KNOWN_AT_MOST", 7)
    standings = {
        "g": Standing(("x", "y"), (), "source"),
        "x": Standing(("a", "b"), (), "destination"),
        "y": Standing(("b", "c"), (), "destination"),
    }
    one = rig(**standings)
    for number in range(200):
        facts = FACTS._replace(
            source=Endpoint(f"10.0.0.{number % 5}", 1000 + number),
            destination=Endpoint(f"10.0.0.{number % 7}", 443),
        )
        key = {"source": facts.source.host, "destination": facts.destination.host}
        found = [each.member for each in one.board.for_flow("g", facts)]
        assert found == [">".join(p[1:]) for p in paths(standings, "g", key.__getitem__)]


def test_after_a_reload_members_are_those_of_the_new_configuration(rig) -> None:
    one = rig()
    old = one.group.carrier(CLIENT)
    fresh = {name: Fake(name) for name in "abc"}
    one.board.adopt(one.board.standings, fresh, 10.0)
    assert one.group.carrier(CLIENT) is not old
    one.flow()
    assert fresh["a"].legs
