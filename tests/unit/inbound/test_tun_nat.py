"""Translation of TCP flows: numbers, their reuse, and who makes room."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow import Endpoint
from gateway.inbound.tun_nat import (
    CLIENT,
    LINGER_S,
    LISTENER,
    NUMBERS,
    OPENING_S,
    TIME_WAIT_S,
    NatFlow,
    NatTable,
)
from gateway.wire.ip import ACK, FIN, RST, SYN

OWN, PEER = ip_address("172.29.88.1").packed, ip_address("172.29.88.2").packed
PORT = 7895
IDLE_S = 7200.0


def ends(client: str, client_port: int, remote: str = "203.0.113.9", port: int = 443) -> bytes:
    both = ip_address(client).packed + ip_address(remote).packed
    return both + client_port.to_bytes(2, "big") + port.to_bytes(2, "big")


def inside(number: int) -> tuple[bytes, bytes]:
    """The ends of both directions behind the translation."""
    peer, own = number.to_bytes(2, "big"), PORT.to_bytes(2, "big")
    return PEER + OWN + peer + own, OWN + PEER + own + peer


@pytest.fixture
def table() -> NatTable:
    return NatTable(OWN, PEER, PORT, most=3, idle_s=IDLE_S)


def opened(table: NatTable, client_port: int, now: float = 0.0) -> NatFlow:
    flow = table.open(ends("192.168.1.2", client_port), now)
    assert flow is not None
    return flow


def finish(table: NatTable, flow: NatFlow, *sides: int) -> None:
    for side in sides:
        assert table.turn(flow, side, FIN | ACK)


def test_both_directions_are_known() -> None:
    table = NatTable(OWN, PEER, PORT, idle_s=IDLE_S)
    there = ends("192.168.1.2", 50000)
    flow = table.open(there, 0.0)
    assert flow is not None
    onward, answer = inside(flow.number)
    assert table.known[there].ends == onward
    back = table.known[answer].ends
    assert back == there[4:8] + there[:4] + there[10:12] + there[8:10]
    assert table.known[there].side == CLIENT
    assert table.known[answer].side == LISTENER
    assert table.accept(flow.number) == (
        Endpoint("192.168.1.2", 50000),
        Endpoint("203.0.113.9", 443),
    )


def test_ipv6_is_the_same() -> None:
    own, peer = ip_address("fd00::1").packed, ip_address("fd00::2").packed
    table = NatTable(own, peer, PORT, idle_s=IDLE_S)
    there = ends("2001:db8::1", 50000, "2001:db8:9::1", 80)
    flow = table.open(there, 0.0)
    assert flow is not None
    assert table.accept(flow.number) == (
        Endpoint("2001:db8::1", 50000),
        Endpoint("2001:db8:9::1", 80),
    )
    number, port = flow.number.to_bytes(2, "big"), PORT.to_bytes(2, "big")
    answer = table.known[own + peer + port + number]
    assert answer.ends == there[16:32] + there[:16] + there[34:] + there[32:34]


def test_every_flow_has_a_number_of_its_own() -> None:
    table = NatTable(OWN, PEER, PORT, idle_s=IDLE_S)
    flows = [opened(table, port) for port in range(40000, 40100)]
    assert len({flow.number for flow in flows}) == 100
    assert all(flow.number in NUMBERS for flow in flows)


def test_nobody_accepts_what_is_not_there(table: NatTable) -> None:
    assert table.accept(NUMBERS[0]) is None


def test_one_that_the_client_ended_is_forgotten_soon(table: NatTable) -> None:
    flow = opened(table, 1)
    finish(table, flow, CLIENT, LISTENER)
    table.expire(LINGER_S - 1)
    assert table.flows
    table.expire(LINGER_S)
    assert not table.flows
    assert not table.known


def test_the_number_of_one_that_the_listener_ended_is_kept_while_the_kernel_knows_it(
    table: NatTable,
) -> None:
    flow = opened(table, 1)
    finish(table, flow, LISTENER, CLIENT)
    table.expire(TIME_WAIT_S - 1)
    assert flow.number in table.flows
    table.expire(TIME_WAIT_S)
    assert not table.flows


def test_a_number_is_used_again_when_all_others_were(table: NatTable) -> None:
    first = opened(table, 1)
    table.turn(first, CLIENT, RST)
    table.expire(LINGER_S)
    seen = [first.number]
    for port in range(2, len(NUMBERS) + 1):
        flow = opened(table, port, LINGER_S)
        seen.append(flow.number)
        table.turn(flow, CLIENT, RST)
        table.expire(2 * LINGER_S)
    assert len(set(seen)) == len(NUMBERS)
    assert opened(table, 1, 2 * LINGER_S).number == first.number


def test_packets_that_pass_after_the_end_put_it_off(table: NatTable) -> None:
    flow = opened(table, 1)
    table.turn(flow, CLIENT, RST)
    flow.active = True
    table.expire(LINGER_S)
    assert table.flows
    table.expire(2 * LINGER_S)
    assert not table.flows


def test_a_client_that_begins_anew_has_a_new_number(table: NatTable) -> None:
    old = opened(table, 1)
    finish(table, old, LISTENER, CLIENT)
    assert not table.turn(old, CLIENT, SYN)
    new = opened(table, 1)
    assert new.number != old.number
    assert table.known[new.ends].flow is new
    table.expire(TIME_WAIT_S)
    assert old.number not in table.flows
    assert inside(old.number)[1] not in table.known
    table.accept(new.number)
    assert table.known[new.ends].flow is new


def test_a_syn_sent_again_belongs_to_its_flow(table: NatTable) -> None:
    flow = opened(table, 1)
    assert table.turn(flow, CLIENT, SYN)
    assert table.turn(flow, LISTENER, SYN | ACK)


def test_quiet_flows_are_forgotten_late_and_unanswered_ones_soon(table: NatTable) -> None:
    accepted, unanswered = opened(table, 1), opened(table, 2)
    table.accept(accepted.number)
    table.expire(OPENING_S)
    assert list(table.flows) == [accepted.number]
    assert unanswered.number not in table.flows
    table.expire(IDLE_S)
    assert not table.flows


def test_room_is_made_by_those_nobody_has_accepted_then_by_the_oldest(table: NatTable) -> None:
    first, second, third = (opened(table, port) for port in (1, 2, 3))
    table.accept(first.number)
    table.accept(second.number)
    opened(table, 4)
    assert third.number not in table.flows
    fourth = table.known[ends("192.168.1.2", 4)].flow
    table.accept(fourth.number)
    opened(table, 5)
    assert first.number not in table.flows
    assert len(table.flows) == 3


def test_no_room_is_made_by_numbers_that_the_kernel_keeps(table: NatTable) -> None:
    for port in (1, 2, 3):
        finish(table, opened(table, port), LISTENER, CLIENT)
    assert table.open(ends("192.168.1.2", 4), 0.0) is None
    table.expire(TIME_WAIT_S)
    assert table.open(ends("192.168.1.2", 4), TIME_WAIT_S) is not None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "accept", "client", "listener", "reset", "wait"]),
            st.integers(1, 6),
        ),
        max_size=80,
    )
)
def test_whatever_happens_each_number_is_one_flow_s(steps: list[tuple[str, int]]) -> None:
    """Bounded, known both ways, and none that the kernel still knows given to another."""
    table, now = NatTable(OWN, PEER, PORT, most=4, idle_s=IDLE_S), 0.0
    kept_until: dict[int, float] = {}
    for step, port in steps:
        found = table.known.get(ends("192.168.1.2", port))
        flow = found.flow if found else None
        if step == "open":
            new = table.open(ends("192.168.1.2", port), now)
            assert new is None or kept_until.pop(new.number, now) <= now
        elif step == "wait":
            now += 20.0 * port
            table.expire(now)
        elif flow is None:
            continue
        elif step == "accept":
            table.accept(flow.number)
        elif step == "reset":
            table.turn(flow, CLIENT, RST)
        else:
            table.turn(flow, CLIENT if step == "client" else LISTENER, FIN)
            if flow.ended and flow.linger == TIME_WAIT_S:
                kept_until[flow.number] = flow.seen + TIME_WAIT_S
        assert len(table.flows) <= 4
        assert all(inside(number)[1] in table.known for number in table.flows)
        assert {known.flow.number for known in table.known.values()} == set(table.flows)
