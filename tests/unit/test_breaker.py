from __future__ import annotations

from dataclasses import dataclass

import pytest

from gateway.breaker import AT_ONCE, PAIRS, SHARE, WINDOW, Breaker, advice
from gateway.flow import CloseReason, Endpoint, FlowFacts, Protocol

WEB = Endpoint("198.51.100.10", 80)


@dataclass
class Flow:
    id: int
    facts: FlowFacts
    reason: CloseReason | None = None
    bytes_down: int = 0


def flow(number: int, host: str = "10.0.1.50", destination: Endpoint = WEB) -> Flow:
    facts = FlowFacts(Protocol.TCP, Endpoint(host, 40_000 + number), destination)
    return Flow(number, facts)


def tripped(flows: list[Flow], opening: int = 1) -> list[int]:
    """Numbers of the flows that are reset; the last ``opening`` so far are not relayed yet."""
    breaker = Breaker()
    found = []
    for at, one in enumerate(flows):
        if breaker.trips(one, range(at + 1 - opening)):
            found.append(one.id)
    return found


def test_a_loop_is_reset_at_its_head() -> None:
    loop = [flow(number) for number in range(2 * WINDOW)]
    assert tripped(loop[: WINDOW - 1]) == []
    assert tripped(loop) == [WINDOW - 1, 2 * WINDOW - 1]
    assert tripped(loop, opening=AT_ONCE) == [WINDOW - 1, 2 * WINDOW - 1]


def test_several_loops_at_once_and_others_among_them() -> None:
    ports = [80, 443, 993]
    flows = [
        flow(n, "10.0.1.9") if n % 5 == 0 else flow(n, destination=WEB._replace(port=ports[n % 3]))
        for n in range(5 * WINDOW)
    ]
    for other in flows[::5]:
        other.bytes_down = 1
    heads = tripped(flows)
    reset = [one.facts for one in flows if one.id in heads]
    assert {facts.destination.port for facts in reset} == set(ports)
    assert "10.0.1.9" not in {facts.source.host for facts in reset}


def test_what_it_keeps_in_mind_is_bounded() -> None:
    strangers = [flow(n, destination=WEB._replace(port=n + 1)) for n in range(PAIRS)]
    loop = [flow(PAIRS + n, destination=WEB._replace(port=9999)) for n in range(WINDOW)]
    assert tripped(strangers[: PAIRS - 1] + loop) == [PAIRS + WINDOW - 1]
    assert tripped(loop[:-1] + strangers + loop[:1]) == [], "it begins anew"


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
    assert tripped(flows, opening=AT_ONCE + 1 if spoilt == "side by side" else 1) == []


def test_the_missing_rule_is_named() -> None:
    assert "{source: 10.0.1.50, to: direct}" in advice(flow(1), own=False)
    assert "`uid:`" in advice(flow(1), own=True)
