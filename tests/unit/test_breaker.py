from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from gateway.breaker import (
    PAIRS,
    SHARE,
    WINDOW,
    WITHIN_S,
    DatagramBreaker,
    StreamBreaker,
    advice,
    ends,
    likeness,
)
from gateway.flow import CloseReason, Endpoint, FlowFacts, Protocol

WEB = Endpoint("198.51.100.10", 80)


@dataclass
class Flow:
    id: int
    facts: FlowFacts
    started: float = 0.0
    reason: CloseReason | None = None
    bytes_down: int = 0


def flow(number: int, host: str = "10.0.1.50", destination: Endpoint = WEB) -> Flow:
    facts = FlowFacts(Protocol.TCP, Endpoint(host, 40_000 + number), destination)
    return Flow(number, facts)


def suspected(flows: list[Flow], opening: int = 1) -> list[int]:
    """The newest of each suspicion; the last ``opening`` so far are not relayed yet."""
    relaying: set[int] = set()
    breaker: StreamBreaker[Flow] = StreamBreaker(relaying)
    found = []
    for at, one in enumerate(flows):
        relaying.update(range(at + 1 - opening))
        if suspects := breaker.suspects(ends(one.facts), one):
            assert suspects[-1] is one
            found.append(one.id)
    return found


def test_a_loop_is_suspected_by_its_head() -> None:
    loop = [flow(number) for number in range(2 * WINDOW)]
    assert suspected(loop[: WINDOW - 1]) == []
    assert suspected(loop) == [WINDOW - 1, 2 * WINDOW - 1]
    assert suspected(loop, opening=WINDOW - SHARE) == [WINDOW - 1, 2 * WINDOW - 1]


def test_several_loops_at_once_and_others_among_them() -> None:
    ports = [80, 443, 993]
    flows = [
        flow(n, "10.0.1.9") if n % 5 == 0 else flow(n, destination=WEB._replace(port=ports[n % 3]))
        for n in range(5 * WINDOW)
    ]
    for other in flows[::5]:
        other.bytes_down = 1
    heads = suspected(flows)
    found = [one.facts for one in flows if one.id in heads]
    assert {facts.destination.port for facts in found} == set(ports)
    assert "10.0.1.9" not in {facts.source.host for facts in found}


def test_what_it_keeps_in_mind_is_bounded() -> None:
    strangers = [flow(n, destination=WEB._replace(port=n + 1)) for n in range(PAIRS)]
    loop = [flow(PAIRS + n, destination=WEB._replace(port=9999)) for n in range(WINDOW)]
    assert suspected(strangers[: PAIRS - 1] + loop, opening=0) == [PAIRS + WINDOW - 1]
    assert suspected(loop[:-1] + strangers + loop[:1], opening=0) == [], "it begins anew"


@pytest.mark.parametrize("spoilt", ["answered", "closed", "side by side", "elsewhere"])
def test_clients_are_left_alone(spoilt: str) -> None:
    flows = [flow(number) for number in range(WINDOW)]
    for one in flows[: WINDOW - SHARE + 1]:
        if spoilt == "answered":
            one.bytes_down = 1
        elif spoilt == "closed":
            one.reason = CloseReason.DONE
        elif spoilt == "elsewhere":
            one.facts = one.facts._replace(destination=WEB._replace(port=443))
    opening = WINDOW - SHARE + 1 if spoilt == "side by side" else 1
    assert suspected(flows, opening) == []


# --- datagrams -----------------------------------------------------------------------------------


def datagram_flow(number: int, port: int = 9999, protocol: Protocol = Protocol.UDP) -> Flow:
    one = flow(number, destination=WEB._replace(port=port))
    return replace(one, facts=one.facts._replace(protocol=protocol))


def caught(flows: list[Flow], first: Callable[[int], bytes]) -> list[list[int]]:
    breaker: DatagramBreaker[Flow] = DatagramBreaker()
    loops = [breaker.suspects(likeness(one.facts, first(one.id)), one) for one in flows]
    return [[each.id for each in loop] for loop in loops if loop]


def test_one_datagram_that_goes_round_is_suspected_with_all_its_flows() -> None:
    flows = [datagram_flow(number) for number in range(WINDOW + 5)]
    flows[3].reason = CloseReason.IDLE_TIMEOUT
    flows[4].bytes_down = 1
    spared = {3, 4}
    assert caught(flows, lambda _: b"once") == [[n for n in range(WINDOW) if n not in spared]]


@pytest.mark.parametrize("spoilt", ["other datagrams", "answered", "closed", "slow"])
def test_clients_of_datagrams_are_left_alone(spoilt: str) -> None:
    flows = [datagram_flow(number) for number in range(WINDOW)]
    for one in flows[: WINDOW - SHARE + 1]:
        one.bytes_down = int(spoilt == "answered")
        one.reason = CloseReason.IDLE_TIMEOUT if spoilt == "closed" else None
    flows[-1].started = WITHIN_S + 1 if spoilt == "slow" else 0.0
    differ = spoilt == "other datagrams"
    assert caught(flows, lambda number: b"%d" % (number if differ else 0)) == []


def test_a_question_that_goes_round_has_new_numbers_and_case() -> None:
    def question(number: int) -> bytes:
        name = b"EXAMPLE" if number % 2 else b"example"
        return number.to_bytes(2, "big") + b"\1\0\0\1" + bytes(6) + b"\7" + name + bytes(5)

    asked = [datagram_flow(number, port=53) for number in range(WINDOW)]
    other = [datagram_flow(number) for number in range(WINDOW)]
    assert len(caught(asked, question)) == 1
    assert caught(other, question) == []


def test_the_missing_rule_is_named() -> None:
    assert "{source: 10.0.1.50, to: direct}" in advice(flow(1), own=False)
    assert "`uid:`" in advice(flow(1), own=True)
    assert "same datagram" in advice(datagram_flow(1), own=False)
