"""What probes make of a member."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.groups.health import KEPT, RISES, UNKNOWN, Health, Result

probes = st.lists(st.tuples(st.booleans(), st.floats(0.001, 30)), max_size=40)


def after(*results: tuple[bool, float]) -> Health:
    health = UNKNOWN
    for at, (ok, seconds) in enumerate(results):
        health = health.after(Result(float(at), seconds, "" if ok else "refused"))
    return health


def test_nothing_is_held_against_a_member_that_was_not_probed() -> None:
    assert (UNKNOWN.up, UNKNOWN.usable, UNKNOWN.latency) == (None, True, None)


def test_one_bad_probe_takes_it_down_and_two_good_ones_up() -> None:
    down = after((True, 0.1), (False, 5))
    assert (down.up, down.since, down.failure) == (False, 1.0, "refused")
    rising = down.after(Result(2.0, 0.1))
    assert (rising.up, rising.rises, rising.since) == (False, 1, 1.0)
    risen = rising.after(Result(3.0, 0.1))
    assert (risen.up, risen.rises, risen.since) == (True, 0, 3.0)


def test_the_first_good_probe_takes_it_up() -> None:
    assert after((True, 0.1)).up is True


def test_its_latency_is_the_median_of_the_last_three_good_probes() -> None:
    assert after((True, 9), (True, 0.3), (False, 5), (True, 0.1), (True, 0.2)).latency == 0.2
    assert after((True, 0.3), (True, 0.1)).latency == 0.1


@given(probes)
def test_it_is_up_after_enough_good_probes_in_a_row_and_never_after_a_bad_one(results) -> None:
    health = after(*results)
    good = 0
    for ok, _ in reversed(results):
        if not ok:
            break
        good += 1
    if not results:
        assert health.up is None
    elif good == 0:
        assert health.up is False
    elif good >= RISES or good == len(results):
        assert health.up is True
    else:
        assert health.up is False
    assert len(health.results) == min(KEPT, len(results))


@given(st.integers(1, 30))
def test_one_that_comes_and_goes_stays_down(times: int) -> None:
    health = after((False, 1.0))
    for _ in range(times):
        health = health.after(Result(0.0, 0.1)).after(Result(0.0, 5, "refused"))
        assert not health.usable
