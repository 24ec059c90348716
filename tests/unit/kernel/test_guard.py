from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from gateway.kernel.guard import Outcome, judge
from gateway.kernel.lookup import Answer
from gateway.marks import Marks
from gateway.plan.egress import Egress

PORT = 7895
MARKED = Egress("home", "203.0.113.5", mark=Marks().bypass, port=1080)
BY_DEVICE = replace(MARKED, mark=None, device="wan0")
ON_LINK = Answer(table=254, device="wan0")
DEFAULT = Answer(table=254, device="wan0", gateway="203.0.113.1")
ASSUMED = Answer(device="wan0", assumed_on_link=True)
LOCAL = Answer(local=True, table=255, device="lo", own=True)

OWN_BY_WIRE = replace(DEFAULT, own=True)
BY_SOURCE = replace(MARKED, strategy="source", source="203.0.113.2", uplink="wan0")
IN_NETNS = replace(MARKED, strategy="netns", netns="phys")
OF_PROGRAM = replace(MARKED, strategy="uid", destination="127.0.0.1", uid=4242)


@pytest.mark.parametrize(
    ("egress", "answer", "outcome"),
    [
        (MARKED, ON_LINK, Outcome.CLEAR),
        (MARKED, DEFAULT, Outcome.CLEAR),
        (MARKED, replace(DEFAULT, table=51820), Outcome.CLEAR),
        # The diversion, by its table, or by its effect in a table of somebody else.
        (MARKED, Answer(local=True, table=8801, device="lo"), Outcome.LOOP),
        (MARKED, Answer(table=8802, device="tun0"), Outcome.LOOP),
        (MARKED, Answer(local=True, table=100, device="lo"), Outcome.LOOP),
        # A server on this machine is local, and no loop, unless it is our own listener.
        (replace(MARKED, destination="127.0.0.1"), LOCAL, Outcome.CLEAR),
        (replace(MARKED, destination="203.0.113.2"), LOCAL, Outcome.CLEAR),
        (replace(MARKED, destination="127.0.0.1", port=PORT), LOCAL, Outcome.LOOP),
        (replace(MARKED, destination="fd00:20::1", port=PORT), LOCAL, Outcome.LOOP),
        (replace(MARKED, port=PORT), ON_LINK, Outcome.CLEAR),
        # No route is no loop.
        (MARKED, Answer(error=errno.ENETUNREACH), Outcome.NO_ROUTE),
        (BY_DEVICE, Answer(error=errno.ENODEV, device="wan0"), Outcome.NO_ROUTE),
        # A device that cannot reach the server.
        (BY_DEVICE, DEFAULT, Outcome.CLEAR),
        (BY_DEVICE, ON_LINK, Outcome.CLEAR),
        (replace(BY_DEVICE, destination="127.0.0.1"), OWN_BY_WIRE, Outcome.REFUSED),
        (replace(BY_DEVICE, destination="::1"), OWN_BY_WIRE, Outcome.REFUSED),
        (replace(BY_DEVICE, destination="192.168.20.1"), LOCAL, Outcome.REFUSED),
        (replace(BY_DEVICE, destination="127.0.0.1", device="lo"), LOCAL, Outcome.CLEAR),
        (BY_DEVICE, ASSUMED, Outcome.REFUSED),
        # Without ARP there is nobody to ask: WireGuard and TUN devices need no route.
        (
            BY_DEVICE,
            Answer(device="wg0", assumed_on_link=True, device_has_arp=False),
            Outcome.CLEAR,
        ),
        # A TUN of ours; one of others is their business.
        (MARKED, Answer(table=254, device="tun0", captured=True), Outcome.REFUSED),
        (MARKED, Answer(table=254, device="tun0"), Outcome.CLEAR),
        # An uplink that is not the one that was meant.
        (BY_SOURCE, DEFAULT, Outcome.CLEAR),
        (BY_SOURCE, Answer(table=254, device="tun0"), Outcome.REFUSED),
        (BY_SOURCE, Answer(error=errno.EINVAL), Outcome.NO_ROUTE),
        (replace(BY_SOURCE, problem="no address", cure="wait"), DEFAULT, Outcome.REFUSED),
        # Another namespace: our listener is not there.
        (IN_NETNS, DEFAULT, Outcome.CLEAR),
        (IN_NETNS, Answer(error=errno.ENETUNREACH), Outcome.NO_ROUTE),
        (IN_NETNS, Answer(error=errno.ENOENT), Outcome.NO_ROUTE),
        (IN_NETNS, Answer(error=errno.EPERM), Outcome.REFUSED),
        (replace(IN_NETNS, destination="127.0.0.1", port=PORT), LOCAL, Outcome.CLEAR),
        # A program on this machine: it must run as who it is said to.
        (OF_PROGRAM, LOCAL, Outcome.CLEAR),
        (OF_PROGRAM, replace(LOCAL, users=frozenset({4242})), Outcome.CLEAR),
        (OF_PROGRAM, replace(LOCAL, users=frozenset({0, 4242})), Outcome.REFUSED),
        (replace(OF_PROGRAM, port=PORT), LOCAL, Outcome.LOOP),
    ],
)
def test_judgement(egress: Egress, answer: Answer, outcome: Outcome) -> None:
    finding = judge(egress, answer, PORT, own_diverted=True)
    assert finding.outcome is outcome, finding
    assert finding.route == str(answer)
    assert bool(finding.reason) == bool(finding.hint) == (outcome is not Outcome.CLEAR)
    assert finding.ok == (outcome in (Outcome.CLEAR, Outcome.NO_ROUTE))


def test_a_program_may_run_as_anybody_where_this_machine_is_not_diverted() -> None:
    assert judge(OF_PROGRAM, replace(LOCAL, users=frozenset({0})), PORT).ok
