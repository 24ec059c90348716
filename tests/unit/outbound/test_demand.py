"""How many connections are wanted: by rate and time, within bounds, and none for nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.outbound.demand import MAX_SIZE, PERIOD_S, WORTH_S, Demand


def steady(rate: float, took_s: float, start: float = 1000.0) -> tuple[Demand, float]:
    """Ten seconds of evenly spaced flows, and the time after them."""
    demand, now = Demand(), start
    demand.took(took_s, now)
    while now < start + 10:
        now += 1 / rate
        demand.flow(now)
    return demand, now


def test_none_before_anything_is_known():
    demand = Demand()
    assert demand.size(1000.0) == 0
    demand.flow(1000.0)
    assert demand.size(1000.0) == 0


@pytest.mark.parametrize(("rate", "took_s", "size"), [(10, 0.1, 3), (100, 0.05, 11), (1, 0.1, 1)])
def test_it_follows_rate_and_time(rate, took_s, size):
    demand, now = steady(rate, took_s)
    assert demand.size(now) == size


@pytest.mark.parametrize(("took_s", "some"), [(WORTH_S * 0.99, False), (WORTH_S, True)])
def test_none_where_there_is_little_to_be_saved(took_s, some):
    demand, now = steady(1000, took_s)
    assert bool(demand.size(now)) is some


def test_it_shrinks_when_flows_stop():
    demand, now = steady(100, 0.1)
    sizes = [demand.size(now + later) for later in range(5)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1


def test_the_shortest_time_counts_until_it_is_old():
    demand, now = steady(100, 0.001)
    demand.took(0.1, now)
    assert demand.size(now) == 0
    demand.took(0.1, now + PERIOD_S + 0.1)  # the period before still counts
    for later in (2.1, 3.2):
        now_and_then = now + later * PERIOD_S
        demand.took(0.1, now_and_then)
        demand.flow(now_and_then)
    assert demand.size(now_and_then) == 1


def test_none_after_a_let_down_until_the_server_has_accepted_another():
    demand, now = steady(100, 0.1)
    demand.forget()
    assert demand.size(now) == 0
    demand.took(0.1, now)
    assert demand.size(now) > 0


@given(
    gaps=st.lists(st.floats(0, 20), max_size=50),
    times=st.lists(st.floats(0, 100), min_size=1),
)
def test_it_is_bounded_whatever_comes(gaps, times):
    demand, now = Demand(), 0.0
    for gap in gaps:
        now += gap
        demand.flow(now)
        demand.took(times[len(gaps) % len(times)], now)
        assert 0 <= demand.size(now) <= MAX_SIZE
