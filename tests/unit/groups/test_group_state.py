"""All groups of a configuration together: who is probed, how they stand, what is said of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.groups import ends_of, groups_within, stands_for
from gateway.config.outbounds import Group
from gateway.groups.health import UNKNOWN, Result
from gateway.groups.report import report
from gateway.groups.schedule import APART_S, DOWN_S, RISING_S, Schedule
from gateway.groups.standing import Standing
from gateway.groups.state import Observed, Order, Tried, orders, standings

from .configs import config, group

URL = "http://www.gstatic.com/generate_204"
OTHER = "http://a.example/"
WELL = UNKNOWN.after(Result(5.0, 0.020))
DOWN = UNKNOWN.after(Result(7.0, 0.5, "refused"))

#: Faster, but by less than the tolerance.
NEAR = Observed(
    taken={"g": "home"},
    healths={Tried("home", URL): UNKNOWN.after(Result(5.0, 0.060)), Tried("away", URL): WELL},
)


def test_the_ends_of_groups() -> None:
    nested = config(
        auto=group("fallback", "home", "away"), exit=group("select", "auto", "home", "direct")
    )
    assert ends_of(nested, "exit") == ("home", "away", "direct")
    assert ends_of(nested, "home") == ("home",)
    assert groups_within(nested, "exit") == {"exit", "auto"}
    assert groups_within(nested, "auto") == {"auto"}
    assert groups_within(nested, "home") == frozenset()


def test_a_group_of_one_kind_stands_for_it() -> None:
    plain = config(
        plain={"type": "direct"},
        same=group("select", "direct", "plain"),
        no=group("select", "reject"),
        mixed=group("select", "direct", "reject"),
    )
    assert stands_for(plain, "same") == plain.outbound("direct")
    assert stands_for(plain, "no") == plain.outbound("reject")
    assert isinstance(stands_for(plain, "mixed"), Group)


def test_each_end_is_probed_once_for_all_groups_that_ask_alike() -> None:
    several = config(
        one=group("fallback", "home", "reject", probe={"every": 30, "timeout": 3}),
        two=group("url-test", "home", "inner", probe={"lazy": False}),
        inner=group("select", "away"),
        other=group("load-balance", "home", probe={"url": OTHER}),
    )
    assert orders(several) == {
        Tried("home", URL): Order(30, 5, frozenset({"one", "two"}), always=True),
        Tried("away", URL): Order(60, 5, frozenset({"two"}), always=True),
        Tried("home", OTHER): Order(60, 5, frozenset({"other"}), always=False),
    }


def test_a_member_that_is_a_group_is_as_well_as_who_it_would_take() -> None:
    nested = config(
        auto=group("fallback", "inner", "direct"), inner=group("fallback", "home", "away")
    )
    home = {Tried("home", URL): DOWN}
    both = {**home, Tried("away", URL): DOWN}
    assert standings(nested, Observed(healths=home)) == {
        "auto": Standing(("inner", "direct")),
        "inner": Standing(("away",), ("home",)),
    }
    assert standings(nested, Observed(healths=both)) == {
        "auto": Standing(("direct",), ("inner",)),
        "inner": Standing((), ("home", "away")),
    }
    chosen = config(
        auto=group("fallback", "inner", "direct"), inner=group("select", "home", "away")
    )
    assert standings(chosen, Observed(healths=home))["auto"].now == ("direct",)
    well = Observed(healths=home, chosen={"inner": "away"})
    assert standings(chosen, well)["auto"].now == ("inner",)


def test_what_refuses_never_fails() -> None:
    last = config(auto=group("fallback", "home", "reject"))
    assert standings(last, Observed(healths={Tried("home", URL): DOWN}))["auto"].now == ("reject",)


def test_choices_that_mean_nothing_any_more_are_left_alone() -> None:
    one = config(exit=group("select", "home", "away", interrupt=True))
    observed = Observed(chosen={"exit": "gone", "was": "home"})
    assert standings(one, observed) == {"exit": Standing(("home",), interrupt=True)}


@pytest.mark.parametrize(
    ("kind", "observed", "takes", "reason"),
    [
        ("select", Observed(), ("home",), "the first: none has been chosen"),
        ("select", Observed(chosen={"g": "away"}), ("away",), "chosen by hand"),
        ("fallback", Observed(), ("home",), "the first that is well: not measured"),
        (
            "fallback",
            Observed(healths={Tried("home", URL): DOWN, Tried("away", URL): WELL}),
            ("away",),
            "the first that is well: 20 ms; home is down for 3 s: refused",
        ),
        (
            "fallback",
            Observed(healths={Tried("home", URL): DOWN, Tried("away", URL): DOWN}),
            ("home",),
            (
                "all are down, and tried in their order; home is down for 3 s: refused;"
                " away is down for 3 s: refused"
            ),
        ),
        ("url-test", Observed(healths={Tried("away", URL): WELL}), ("away",), "the fastest: 20 ms"),
        ("url-test", NEAR, ("home",), "the fastest: 60 ms"),
        (
            "load-balance",
            Observed(healths={Tried("home", URL): DOWN}),
            ("away",),
            "1 of 2, by source; home is down for 3 s: refused",
        ),
    ],
)
def test_what_is_said(kind: str, observed: Observed, takes: tuple[str, ...], reason: str) -> None:
    (record,) = report(config(g=group(kind, "home", "away")), observed, 10.0)
    assert (record.type, record.takes, record.reason) == (kind, takes, reason)
    assert [member.name for member in record.members if member.taken] == list(takes)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0 s"), (59.9, "59 s"), (60, "1 min"), (7199, "1 h"), (90_000, "1 d")],
)
def test_how_long_a_member_is_down(seconds: float, said: str) -> None:
    observed = Observed(healths={Tried("home", URL): DOWN})
    (record,) = report(config(g=group("fallback", "home", "away")), observed, 7.0 + seconds)
    assert record.reason.endswith(f"home is down for {said}: refused")


def test_what_is_said_of_members() -> None:
    observed = Observed(healths={Tried("home", URL): DOWN, Tried("away", URL): WELL})
    (record,) = report(config(g=group("fallback", "home", "away", "direct")), observed, 10.0)
    home, away, direct = record.members
    assert (home.state, home.since, home.latency_ms, home.failure) == ("down", 7.0, None, "refused")
    assert (away.state, away.since, away.latency_ms, away.failure) == ("up", 5.0, 20.0, "")
    assert (direct.state, direct.since, direct.history) == ("unknown", None, ())


LAZY = config(g=group("fallback", "home", "away"))
EAGER = config(g=group("fallback", "home", probe={"lazy": False}))
HOME, AWAY = Tried("home", URL), Tried("away", URL)
ORDER = orders(EAGER)[HOME]


def due(schedule: Schedule, now: float, of=LAZY) -> set[str]:
    return {tried.outbound for tried, _ in schedule.due(of, now)}


def finish(schedule: Schedule, now: float, health=WELL, *names: str) -> None:
    for name in names or ("home", "away"):
        schedule.done(Tried(name, URL), ORDER, health, now, 1.0)


def test_nobody_is_probed_while_no_flow_asks() -> None:
    schedule = Schedule()
    assert due(schedule, 0) == set()
    schedule.heard(LAZY, {"g": 1}, {}, 10)
    assert due(schedule, 10) == {"home", "away"}
    assert due(schedule, 11) == set(), "they are under way"
    finish(schedule, 12)
    assert due(schedule, 13) == set()
    schedule.heard(LAZY, {"g": 1}, {}, 100)
    assert due(schedule, 100) == set(), "no flow since"
    schedule.heard(LAZY, {"g": 2}, {}, 101)
    assert due(schedule, 101) == {"home", "away"}


def test_a_group_inside_another_is_used_with_it() -> None:
    nested = config(exit=group("select", "g"), g=group("fallback", "home"))
    schedule = Schedule()
    schedule.heard(nested, {"exit": 1}, {}, 0)
    assert due(schedule, 0, nested) == {"home"}


def test_who_is_not_lazy_is_probed_at_its_interval() -> None:
    schedule = Schedule()
    assert due(schedule, 0, EAGER) == {"home"}
    finish(schedule, 1, WELL, "home")
    assert due(schedule, 60.9, EAGER) == set()
    assert due(schedule, 61, EAGER) == {"home"}


def test_one_that_is_down_is_looked_at_more_often_and_again_at_once_when_it_rises() -> None:
    schedule = Schedule()
    assert due(schedule, 0, EAGER) == {"home"}
    finish(schedule, 0, DOWN, "home")
    assert due(schedule, DOWN_S - 0.1, EAGER) == set()
    assert due(schedule, DOWN_S, EAGER) == {"home"}
    finish(schedule, DOWN_S, replace(DOWN, rises=1), "home")
    assert due(schedule, DOWN_S + RISING_S, EAGER) == {"home"}


def test_a_flow_that_fails_asks_for_a_probe_of_that_member() -> None:
    schedule = Schedule()
    schedule.heard(LAZY, {"g": 1}, {}, 0)
    assert due(schedule, 0) == {"home", "away"}
    finish(schedule, 0)
    schedule.heard(LAZY, {"g": 2}, {"home": 1}, 0.1)
    assert due(schedule, 0.1) == set(), "it was probed a moment ago"
    assert due(schedule, APART_S) == {"home"}
    finish(schedule, 2, WELL, "home")
    schedule.heard(LAZY, {"g": 2}, {"home": 1}, 3)
    assert due(schedule, 3) == set(), "no other flow has failed since"


def test_totals_that_shrink_with_a_worker_that_died_count_from_there() -> None:
    schedule = Schedule()
    schedule.heard(LAZY, {"g": 100}, {"home": 5}, 0)
    assert due(schedule, 0) == {"home", "away"}
    finish(schedule, 0)
    schedule.heard(LAZY, {"g": 10}, {"home": 1}, 10)
    assert due(schedule, 10) == set()
    schedule.heard(LAZY, {"g": 11}, {"home": 2}, 11)
    assert due(schedule, 11) == {"home"}


steps = st.lists(
    st.tuples(
        st.integers(0, 160).map(lambda eighths: eighths / 8),  # sums of which are exact
        st.integers(0, 2),
        st.dictionaries(st.sampled_from(["home", "away"]), st.integers(1, 3)),
        st.sampled_from([WELL, DOWN, replace(DOWN, rises=1)]),
    ),
    max_size=40,
)


@given(steps)
def test_however_flows_fare_a_member_is_probed_by_one_at_a_time_and_not_too_often(steps) -> None:
    schedule, now, used = Schedule(), 0.0, 0
    failures: Counter[str] = Counter()
    running: set[Tried] = set()
    ended: dict[Tried, float] = {}
    for wait, flows, failed, health in steps:
        now += wait
        used += flows
        failures.update(failed)
        schedule.heard(LAZY, {"g": used}, failures, now)
        for tried, order in schedule.due(LAZY, now):
            assert tried not in running
            assert now - ended.get(tried, -APART_S) >= APART_S
            assert used or failures
            assert order == orders(LAZY)[tried]
            running.add(tried)
        for tried in sorted(running)[: flows + 1]:
            running.discard(tried)
            ended[tried] = now
            schedule.done(tried, orders(LAZY)[tried], health, now, 1.0)
