"""Connections to a SOCKS server that are ready for a request before a flow needs them.

A flow that finds one waits a single round trip to the server, for the reply.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from socket import SocketType
from typing import ClassVar, Final

from gateway.errors import UpstreamFailure
from gateway.flow import Endpoint
from gateway.kernel.reactor import UNKNOWN, Reactor
from gateway.outbound.base import Attempt, Requester
from gateway.outbound.demand import Demand
from gateway.outbound.handshake import OnAccepted, Socks5Attempt

#: One that was opened so long ago is closed (seconds): before the server, or a NAT on the
#: way, is likely to drop it.
MAX_AGE_S: Final = 15.0

#: Opens a connection without a target.
Opener = Callable[[Requester, OnAccepted], Socks5Attempt | None]
#: Opens a flow's leg in the ordinary way.
Otherwise = Callable[[Endpoint, Requester], Attempt | None]


class _Warm:
    """One connection of a pool; then the leg of the flow that took it."""

    __slots__ = ("_attempt", "_lost", "_otherwise", "_replacement", "_requester", "_target")

    member: ClassVar = ""

    def __init__(self, lost: Callable[[_Warm], None], otherwise: Otherwise) -> None:
        self._lost = lost
        self._otherwise = otherwise
        self._attempt: Socks5Attempt | None = None
        self._requester: Requester | None = None
        self._target: Endpoint | None = None
        self._replacement: Attempt | None = None

    def prepare(self, opener: Opener, on_accepted: OnAccepted) -> None:
        """Begin to make it ready."""
        self._attempt = opener(self, on_accepted)

    def carry(self, target: Endpoint, requester: Requester) -> Attempt | None:
        """Become a flow's leg."""
        assert self._attempt is not None
        self._requester = requester
        self._target = target
        try:
            self._attempt.ask(target)
        except OSError:  # it has died, and the edge that tells is not served yet
            self.cancel()
            return self._otherwise(target, requester)
        return self

    def cancel(self) -> None:
        """Give up, close, call nobody."""
        for attempt in (self._attempt, self._replacement):
            if attempt is not None:
                attempt.cancel()
        self._attempt = self._replacement = None

    def first_bytes(self) -> bytes:
        """The flow's."""
        assert self._requester is not None
        return self._requester.first_bytes()

    def connected(
        self, upstream: SocketType, surplus: bytes, sent: int = 0, edges: int = UNKNOWN
    ) -> None:
        """The server has granted the request."""
        assert self._requester is not None
        self._attempt = None
        self._requester.connected(upstream, surplus, sent, edges)

    def failed(self, failure: UpstreamFailure, detail: str, replied: bool = False) -> None:
        """The flow's answer, if the server gave one; else the connection had gone stale."""
        attempt, self._attempt = self._attempt, None
        if self._requester is None or self._target is None:
            self._lost(self)
        elif attempt is not None and replied:
            self._requester.failed(failure, detail, replied)
        else:
            self._replacement = self._otherwise(self._target, self._requester)


class Pool:
    """The ready connections of one outbound, as many as its flows ask for."""

    __slots__ = (
        "_closed", "_demand", "_open", "_opened", "_otherwise", "_reactor", "_ready", "_timer",
    )  # fmt: skip

    def __init__(self, reactor: Reactor, opener: Opener, otherwise: Otherwise) -> None:
        """``otherwise`` opens a leg where none is ready.

        It is also what a connection is replaced by that turns out to be dead before the
        server has said anything of the request: nobody notices.
        """
        self._reactor = reactor
        self._open = opener
        self._otherwise = otherwise
        self._demand = Demand()
        self._opened: dict[_Warm, float] = {}  # and when, the oldest first
        self._ready: list[_Warm] = []  # the last is taken first, so that what is too many ages
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        """How many are ready."""
        return len(self._ready)

    def open(self, target: Endpoint, requester: Requester) -> Attempt | None:
        """A flow's leg, by a connection that is ready if there is one."""
        now = time.monotonic()
        self._demand.flow(now)
        if self._ready:
            warm = self._ready.pop()
            del self._opened[warm]
            leg = warm.carry(target, requester)
        else:
            leg = self._otherwise(target, requester)
        self._fill(now)
        return leg

    def measured(self, took_s: float) -> None:
        """Learn how long the server took to accept a connection."""
        now = time.monotonic()
        self._demand.took(took_s, now)
        self._fill(now)

    def close(self) -> None:
        """Close what no flow has taken, for good."""
        self._closed = True
        for warm in self._opened:
            warm.cancel()
        self._opened.clear()
        self._ready.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _fill(self, now: float) -> None:
        wanted = 0 if self._closed else self._demand.size(now)
        while len(self._opened) < wanted:
            warm = _Warm(self._lose, self._otherwise)
            self._opened[warm] = now
            warm.prepare(self._open, partial(self._accepted, warm))
            if warm not in self._opened:
                break  # it failed at once
        self._watch_age(now)

    def _accepted(self, warm: _Warm, took_s: float) -> None:
        self._ready.append(warm)
        self.measured(took_s)

    def _lose(self, warm: _Warm) -> None:
        """The server refused it, or ended it, or said what it was not asked."""
        self._drop(warm)
        self._demand.forget()

    def _drop(self, warm: _Warm) -> None:
        del self._opened[warm]
        if warm in self._ready:
            self._ready.remove(warm)

    def _watch_age(self, now: float) -> None:
        if self._opened and self._timer is None:
            oldest = next(iter(self._opened.values()))
            self._timer = self._reactor.call_later(oldest + MAX_AGE_S - now, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = time.monotonic()
        for warm, opened in list(self._opened.items()):
            if now - opened < MAX_AGE_S:
                break
            self._drop(warm)
            warm.cancel()
        self._watch_age(now)
