"""Who asks outbounds for a leg, played by a test."""

from __future__ import annotations

import pytest

from gateway.kernel.reactor import UNKNOWN


class Requester:
    """Who asked for a leg; notes what it was told."""

    def __init__(self, plane) -> None:
        self._plane = plane
        self.answers: list[tuple[object, object]] = []
        self.first = b""
        self.sent = 0

    def first_bytes(self):
        return self.first

    def connected(self, upstream, surplus, sent=0, edges=UNKNOWN):
        del edges
        self.sent = sent
        self.answers.append((self._plane.own(upstream), surplus))

    def failed(self, failure, detail, replied=False):
        del replied
        self.answers.append((failure, detail))

    async def answer(self) -> tuple[object, object]:
        await self._plane.until(lambda: self.answers)
        (answer,) = self.answers
        return answer


@pytest.fixture
def new_requester(plane):
    """Makes one for each leg."""
    return lambda: Requester(plane)


@pytest.fixture
def requester(new_requester):
    """One that asks for one leg."""
    return new_requester()
