"""What a relay sends: whose each datagram is, whatever stands before and behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UpstreamFailure
from gateway.flow import Endpoint
from gateway.kernel.datagrams import Batch
from gateway.outbound.association import Association, Control, ControlUser
from gateway.wire.socks5_udp import encode_header

KNOWN = (Endpoint("198.51.100.1", 53), Endpoint("2001:db8::1", 443), Endpoint("a.example", 9))
STRANGER = Endpoint("192.0.2.7", 7)
BATCH = Batch()


class Heard:
    """The way back from one far end."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    def down(self, batch: Batch, first: int, last: int, skip: int) -> None:
        self.got += [
            bytes(each[skip:]) for slot in range(first, last) for each in batch.datagrams(slot)
        ]

    def down_one(self, batch: Batch, data: memoryview) -> None:
        del batch
        self.got.append(bytes(data))


class Owner:
    """Hears one stranger, and counts what was dropped."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()
        self.heard = Heard()

    def stranger(self, remote: Endpoint) -> Heard | None:
        return self.heard if remote == STRANGER else None

    def leg_dropped(self, why: str) -> None:
        self.dropped[why] += 1

    def leg_failed(self, failure: UpstreamFailure, detail: str, kept: Sequence[object]) -> None:
        raise AssertionError((failure, detail, kept))

    def leg_error(self, report: object) -> None:
        raise AssertionError(report)


def nobody(user: ControlUser) -> Control:
    raise AssertionError(user)


FRAGMENT, NONSENSE, NO_NAME = b"\0\0\1", b"\0\0\0\x09", b"\0\0\0\3\1\xff\0\1"
said = st.tuples(
    st.sampled_from([*map(encode_header, (*KNOWN, STRANGER)), FRAGMENT, NONSENSE, NO_NAME]),
    st.binary(min_size=8, max_size=20),
).map(b"".join)
slots = st.lists(st.lists(said | st.binary(max_size=12), min_size=1, max_size=5), max_size=6)


def trains(pieces: list[list[bytes]]) -> list[tuple[list[bytes], int]]:
    """Each list as datagrams that could be one train: as long as the first, the last no longer."""
    made = []
    for datagrams in pieces:
        size = len(datagrams[0])
        alike = [each.ljust(size, b".")[:size] for each in datagrams]
        made.append((alike, size if len(alike) > 1 and size else 0))
    return [(each if step else each[:1], step) for each, step in made]


@given(slots)
def test_each_datagram_reaches_its_own(pieces: list[list[bytes]]) -> None:
    owner = Owner()
    leg = Association(None, BATCH, owner, nobody)  # type: ignore[arg-type]
    routes = {remote: Heard() for remote in KNOWN}
    for remote, route in routes.items():
        leg.way(remote, route)
    routes[STRANGER] = owner.heard
    wanted: dict[Endpoint, list[bytes]] = {remote: [] for remote in routes}
    nowhere = 0
    for slot, (datagrams, step) in enumerate(trains(pieces)):
        BATCH.put(slot, b"".join(datagrams), step)
        for each in datagrams:
            for remote in routes:
                header = encode_header(remote)
                if each.startswith(header):
                    wanted[remote].append(each[len(header) :])
                    break
            else:
                nowhere += 1
    leg._deliver(len(pieces))
    assert {remote: route.got for remote, route in routes.items()} == wanted
    unknown = nowhere - owner.dropped.total()
    assert 0 <= unknown <= sum(len(each) >= 8 for slot in pieces for each in slot)


def test_what_is_well_formed_in_a_train_is_not_lost_with_the_rest() -> None:
    owner, route = Owner(), Heard()
    leg = Association(None, BATCH, owner, nobody)  # type: ignore[arg-type]
    leg.way(KNOWN[0], route)
    good = encode_header(KNOWN[0]) + b"data"
    bad = FRAGMENT.ljust(len(good), b"?")
    BATCH.put(0, bad + good + NONSENSE.ljust(len(good), b"?") + good, len(good))
    leg._deliver(1)
    assert route.got == [b"data", b"data"]
    assert owner.dropped == {"fragment": 1, "malformed": 1}
