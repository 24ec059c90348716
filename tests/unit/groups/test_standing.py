"""Which member each type of group takes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gateway.groups.health import UNKNOWN, Health, Result
from gateway.groups.standing import (
    Standing,
    by_weight,
    fallback,
    load_balance,
    paths,
    select,
    url_test,
)

MEMBERS = ("a", "b", "c", "d")
DOWN = UNKNOWN.after(Result(0.0, 5.0, "refused"))


def up(latency: float) -> Health:
    return UNKNOWN.after(Result(0.0, latency))


healths = st.dictionaries(
    st.sampled_from(MEMBERS),
    st.one_of(st.just(UNKNOWN), st.just(DOWN), st.floats(0.001, 2).map(up)),
)
names = st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=8, unique=True)


def test_what_is_chosen_is_taken_and_nothing_else() -> None:
    assert select(MEMBERS, "c") == Standing(("c",))
    assert select(MEMBERS, "") == select(MEMBERS, "gone") == Standing(("a",))


@given(healths)
def test_a_fallback_takes_the_first_that_is_well(known) -> None:
    standing = fallback(MEMBERS, known)
    well = [name for name in MEMBERS if known.get(name, UNKNOWN).usable]
    assert standing.now == (well[0] if well else MEMBERS[0],)
    assert sorted(standing.usable + standing.others) == sorted(MEMBERS)


def test_what_is_down_comes_last_in_its_order() -> None:
    known = {"a": DOWN, "b": up(0.1), "c": DOWN}
    assert fallback(MEMBERS, known) == Standing(("b", "d"), ("a", "c"))
    everybody = dict.fromkeys(MEMBERS, DOWN)
    assert fallback(MEMBERS, everybody) == Standing((), MEMBERS)


def test_another_must_be_faster_by_the_tolerance() -> None:
    known = {"a": up(0.100), "b": up(0.060)}
    assert url_test(("a", "b"), known, "a", 0.050).now == ("a",)
    assert url_test(("a", "b"), known, "a", 0.030).now == ("b",)
    assert url_test(("a", "b"), known, "", 0.050).now == ("b",)
    assert url_test(("a", "b"), {**known, "a": DOWN}, "a", 0.050).now == ("b",)


def test_who_was_not_measured_comes_behind_those_who_were() -> None:
    assert url_test(("a", "b"), {"b": up(1.0)}, "a", 0.0).usable == ("b", "a")
    assert url_test(("a", "b"), {}, "", 0.0).usable == ("a", "b")


@given(healths, st.sampled_from(("", *MEMBERS)), st.floats(0, 1))
def test_a_url_test_never_takes_who_is_slower_than_the_best_by_more(
    known, current, tolerance
) -> None:
    standing = url_test(MEMBERS, known, current, tolerance)
    measured = {n: h.latency for n, h in known.items() if h.usable and h.latency is not None}
    assert set(standing.usable).isdisjoint(standing.others)
    if measured:
        (taken,) = standing.now
        assert measured[taken] <= min(measured.values()) + tolerance
        if measured.get(current, 9.0) <= min(measured.values()) + tolerance:
            assert taken == current


@given(st.lists(st.floats(-0.024, 0.024), max_size=30))
def test_latencies_that_waver_within_the_tolerance_move_nobody(noise) -> None:
    taken = "a"
    for each in noise:
        known = {"a": up(0.1 + each), "b": up(0.1 - each)}
        (taken,) = url_test(("a", "b"), known, taken, 0.050).now
        assert taken == "a"


@given(names, st.text(), st.data())
def test_a_member_that_is_lost_moves_its_own_part_alone(members, key, data) -> None:
    order = by_weight(members, key)
    assert sorted(order) == sorted(members)
    lost = data.draw(st.sampled_from(members))
    rest = [name for name in members if name != lost]
    assert by_weight(rest, key) == tuple(name for name in order if name != lost)


def test_flows_are_spread_evenly() -> None:
    shares = Counter(by_weight(MEMBERS, f"192.168.20.{host}")[0] for host in range(256))
    assert all(35 <= shares[name] <= 100 for name in MEMBERS), shares


def test_a_balanced_group_spreads_over_those_that_are_well() -> None:
    standing = load_balance(MEMBERS, {"a": DOWN}, "destination")
    assert standing == Standing(("b", "c", "d"), ("a",), "destination")
    assert standing.now == ("b", "c", "d")
    assert load_balance(("a",), {"a": DOWN}, "source").now == ("a",)


def test_paths_lead_through_groups_and_meet_each_outbound_once() -> None:
    standings = {
        "outer": Standing(("inner", "c"), ("d",)),
        "inner": Standing(("a", "c")),
    }
    assert list(paths(standings, "outer", str)) == [
        ("outer", "inner", "a"),
        ("outer", "inner", "c"),
        ("outer", "d"),
    ]
    assert list(paths(standings, "a", str)) == [("a",)]


def test_a_balanced_group_is_asked_by_its_own_key() -> None:
    standings = {"all": Standing(MEMBERS, (), "destination")}
    asked = []

    def key(by: str) -> str:
        asked.append(by)
        return "www.a.example"

    found = [path[-1] for path in paths(standings, "all", key)]
    assert found == list(by_weight(MEMBERS, "www.a.example"))
    assert asked == ["destination"]
