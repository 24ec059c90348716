"""Whether a SOCKS server grants UDP associations, and one that is ready before a client needs it.

Both come of the same asking: the spare that is made ready at the start shows what the server
is like, and so does every later one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from gateway.errors import UpstreamFailure
from gateway.flow import Endpoint
from gateway.kernel.reactor import Reactor
from gateway.outbound.association import Connector, Control, ControlUser
from gateway.wire.socks5 import ClientHandshake

#: A spare that nobody took is replaced (seconds): before a translator on the way forgets it.
MAX_AGE_S: Final = 120.0
#: After a failure, the wait before the next asking; doubled each time (seconds).
RETRY_S: Final = 1.0
RETRY_MOST_S: Final = 60.0
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
        known: bool | None,
    ) -> None:
        self._reactor = reactor
        self._server = server
        self._connector = connector
        self._handshake = handshake
        self._known = known
        self._spare: Control | None = None
        self._ready_since = 0.0
        self._retry_s = RETRY_S
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.carries = known

    def take(self, user: ControlUser) -> Control:
        """One for ``user``: the spare, or one that is begun now."""
        spare = self._spare
        if spare is not None and spare.relay is not None:
            self._spare = None
            spare.user = user
            self._prepare_in(0.0)
            return spare
        control = Control(self._reactor, self._server, user, self._learn)
        control.begin(self._connector, self._handshake())
        return control

    def prepare(self) -> None:
        """Have a spare, and keep having one."""
        self._timer = None
        if self._closed or self._known is False:
            return
        spare = self._spare
        if spare is not None and spare.relay is not None:
            left = self._ready_since + MAX_AGE_S - time.monotonic()
            if left > 0:
                self._prepare_in(left)
                return
            spare.close()
        elif spare is not None:
            return  # on its way
        self._spare = Control(self._reactor, self._server, self, self._learn)
        self._spare.begin(self._connector, self._handshake())

    def control_ready(self, control: Control) -> None:
        """The spare is there."""
        del control
        self._ready_since = time.monotonic()
        self._retry_s = RETRY_S
        self._prepare_in(MAX_AGE_S)

    def control_lost(self, control: Control, failure: UpstreamFailure, detail: str) -> None:
        """It cannot be had, or is gone."""
        del control, failure, detail
        self._spare = None
        self._prepare_in(ASK_AGAIN_S if self.carries is False else self._retry_s)
        self._retry_s = min(2 * self._retry_s, RETRY_MOST_S)

    def close(self) -> None:
        """Close the spare; those in use go on."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._spare is not None:
            self._spare.close()
            self._spare = None

    def _learn(self, granted: bool) -> None:
        if self._known is None:
            self.carries = granted

    def _prepare_in(self, delay_s: float) -> None:
        if self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._reactor.call_later(delay_s, self.prepare)
