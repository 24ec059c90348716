"""Whether a SOCKS server grants UDP associations, and some that are ready before they are needed.

Both come of the same asking: the spare that is made ready at the start shows what the server
is like, and so does every later one.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

from gateway.errors import UpstreamFailure
from gateway.flow import Endpoint
from gateway.kernel.reactor import Reactor
from gateway.outbound.association import Connector, Control, ControlUser, RelayOpener
from gateway.outbound.demand import Demand
from gateway.wire.socks5 import ClientHandshake

#: Even where it takes no time to have one, or none has been needed for long.
LEAST: Final = 2
#: One that was taken is replaced so much later (seconds): whoever took it waits for an answer now.
REFILL_S: Final = 0.002
#: A spare that nobody took is replaced (seconds): before a translator on the way forgets it.
MAX_AGE_S: Final = 120.0
#: After a failure, the wait before the next asking; doubled each time (seconds).
RETRY_S: Final = 1.0
RETRY_MOST_S: Final = 60.0
#: A server that has granted some and hangs up so often in a row grants none any more.
HANG_UPS: Final = 3
#: A server that grants none is asked again (seconds): its owner may have changed its mind.
ASK_AGAIN_S: Final = 300.0


class Spares:
    """The associations of one outbound. ``known``: what its owner wrote down, if anything.

    ``carries`` is None until the server has shown it.
    """

    def __init__(
        self,
        reactor: Reactor,
        server: Endpoint,
        connector: Connector,
        handshake: Callable[[], ClientHandshake],
        open_relay: RelayOpener,
        known: bool | None,
    ) -> None:
        self._reactor = reactor
        self._server = server
        self._connector = connector
        self._handshake = handshake
        self._open_relay = open_relay
        self._known = known
        self._demand = Demand()
        self._opening: dict[Control, float] = {}  # and since when
        self._ready: dict[Control, float] = {}  # the same, the oldest first
        self._retry_s = RETRY_S
        self._hang_ups = 0
        self._not_before = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        self._closed = False
        self.carries = known

    def __len__(self) -> int:
        """How many are ready."""
        return len(self._ready)

    def take(self, user: ControlUser) -> Control:
        """One for ``user``: a spare, or one that is begun now."""
        now = time.monotonic()
        self._demand.flow(now)
        self._prepare_at(now + REFILL_S)
        if self._ready:
            control, _ = self._ready.popitem()
            control.user = user
            return control
        control = self._control(user)
        control.begin(self._connector, self._handshake())
        return control

    def prepare(self) -> None:
        """Have spares, and keep having them."""
        self._timer, self._due = None, math.inf
        if self._closed or self._known is False:
            return
        now = time.monotonic()
        for control, since in list(self._ready.items()):
            if now - since < MAX_AGE_S:
                break
            del self._ready[control]
            control.close()
        wanted = max(LEAST, self._demand.size(now))
        while len(self._ready) + len(self._opening) < wanted:
            control = self._control(self)
            self._opening[control] = now
            control.begin(self._connector, self._handshake())
            if control not in self._opening:
                break  # it failed at once
        self._watch_age()

    def control_ready(self, control: Control) -> None:
        """A spare is there."""
        now = time.monotonic()
        self._demand.took(now - self._opening.pop(control), now)
        self._ready[control] = now
        self._retry_s = RETRY_S
        self._watch_age()

    def control_lost(self, control: Control, failure: UpstreamFailure, detail: str) -> None:
        """One cannot be had, or is gone."""
        del failure, detail
        now = time.monotonic()
        self._demand.forget()
        if self._ready.pop(control, None) is not None:
            self._prepare_at(now + RETRY_S)
            return
        del self._opening[control]
        self._not_before = now + (ASK_AGAIN_S if self.carries is False else self._retry_s)
        self._prepare_at(self._not_before)
        self._retry_s = min(2 * self._retry_s, RETRY_MOST_S)

    def close(self) -> None:
        """Close the spares; those in use go on."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for control in (*self._opening, *self._ready):
            control.close()
        self._opening.clear()
        self._ready.clear()

    def _control(self, user: ControlUser) -> Control:
        return Control(self._reactor, self._server, user, self._learn, self._open_relay)

    def _learn(self, granted: bool, replied: bool) -> None:
        if self._known is not None:
            return
        self._hang_ups = 0 if replied else self._hang_ups + 1
        # Whoever has granted some may have ended for another reason.
        if replied or not self.carries or self._hang_ups >= HANG_UPS:
            self.carries = granted

    def _watch_age(self) -> None:
        if self._ready:
            self._prepare_at(next(iter(self._ready.values())) + MAX_AGE_S)

    def _prepare_at(self, when: float) -> None:
        """Look again then, if that is not to be sooner anyway."""
        when = max(when, self._not_before)
        if self._closed or self._due <= when:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = when
        self._timer = self._reactor.call_later(when - time.monotonic(), self.prepare)
