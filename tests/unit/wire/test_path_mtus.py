"""What routers tell of paths: the least of it, for a while, of so many hosts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.path_mtu import LEAST, MAX_AGE_S, MOST, PathMtus

HOSTS = st.sampled_from([b"a", b"b", b"c"])


@given(st.lists(st.tuples(HOSTS, st.integers(0, 0xFFFF_FFFF))))
def test_the_least_that_was_told_counts(said: list[tuple[bytes, int]]) -> None:
    paths = PathMtus(1500)
    known: dict[bytes, int] = {}
    for host, mtu in said:
        before = known.get(host, 1500)
        known[host] = min(before, max(mtu, LEAST))
        assert paths.tell(host, mtu, 0.0) == (known[host] < before)
    assert all(paths.of(host) == known.get(host, 1500) for host in (b"a", b"b", b"c"))


def test_it_is_forgotten() -> None:
    paths = PathMtus(1500)
    paths.tell(b"a", 1400, 0.0)
    paths.tell(b"b", 1400, 1.0)
    paths.tell(b"a", 1300, 2.0)  # anew
    paths.expire(MAX_AGE_S + 1.5)
    assert (paths.of(b"a"), paths.of(b"b")) == (1300, 1500)
    paths.expire(MAX_AGE_S + 2.0)
    assert paths.of(b"a") == 1500


def test_there_is_room_for_so_many() -> None:
    paths = PathMtus(1500)
    hosts = [b"%d" % number for number in range(MOST + 1)]
    for host in hosts:
        paths.tell(host, 1400, 0.0)
    assert paths.of(hosts[0]) == 1500
    assert all(paths.of(host) == 1400 for host in hosts[1:])
