"""A leg for the gateway's own use: had, refused, or given up."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from gateway.errors import GatewayError, UpstreamFailure
from gateway.flow import Endpoint, FlowFacts
from gateway.kernel.reactor import Reactor, run
from gateway.outbound.base import Requester
from gateway.outbound.leg import open_leg

TARGET = Endpoint("192.0.2.1", 80)


class Way:
    """An outbound that says what a test wants, when it wants it."""

    def __init__(self, say: Callable[[Requester], None]) -> None:
        self._say = say
        self.cancelled = False
        self.asked_by: Requester | None = None

    def __call__(self, reactor: Reactor) -> Way:
        self.reactor = reactor
        return self

    def open(self, _: FlowFacts, requester: Requester) -> Way:
        self.asked_by = requester
        self._say(requester)
        return self

    def cancel(self) -> None:
        self.cancelled = True
        assert self.asked_by is not None
        self._say(self.asked_by)

    def close(self) -> None:
        pass


def nothing(_: Requester) -> None:
    """No answer."""


def test_what_is_connected_is_handed_over_to_whoever_blocks() -> None:
    with socket.socket() as ours:
        ours.setblocking(False)

        def connected(asker: Requester) -> None:
            way.reactor.watch(ours.fileno(), way)
            asker.connected(ours, b"")

        way = Way(connected)
        sock = run(open_leg(way, TARGET, 5))
        assert (sock.gettimeout(), way.cancelled) == (5, False)
        sock.close()


@pytest.mark.parametrize(
    ("say", "why"),
    [
        (lambda asker: asker.failed(UpstreamFailure.REFUSED, "nobody"), "refused: nobody"),
        (lambda asker: asker.connected(socket.socket(), b"hi"), "before it was asked"),
        (nothing, "no connection to 192.0.2.1:80"),
    ],
)
def test_what_cannot_be_had_is_said(say: Callable[[Requester], None], why: str) -> None:
    way = Way(say)
    with pytest.raises(GatewayError, match=why):
        run(open_leg(way, TARGET, 0.01))
    assert way.cancelled == (say is nothing)


@pytest.mark.parametrize("late", ["connected", "failed"])
def test_an_answer_in_the_moment_of_giving_up_is_too_late(late: str) -> None:
    """It is no bug either: the leg is closed by whoever gave up."""

    def say(asker: Requester) -> None:
        if late == "connected":
            asker.connected(unused, b"")
        else:
            asker.failed(UpstreamFailure.REFUSED, "nobody")

    way = Way(nothing)
    with socket.socket() as unused:
        opening = open_leg(way, TARGET, 0.01)
        way._say = lambda asker: say(asker) if way.cancelled else None
        with pytest.raises(GatewayError, match="no connection"):
            run(opening)
        assert way.cancelled
