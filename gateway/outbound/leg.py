"""One connection through an outbound, for the gateway's own use: fetching, resolving."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from socket import SocketType

from gateway.errors import GatewayError, UpstreamFailure
from gateway.flow import Endpoint, FlowFacts, Protocol
from gateway.kernel.reactor import UNKNOWN, Reactor, running_reactor
from gateway.kernel.sockets import as_blocking
from gateway.outbound.base import Outbound


class _Asker:
    """The requester of a leg that no client waits for.

    The time may have run out in the very moment that it is told: whoever gave up closes the leg.
    """

    def __init__(self, leg: asyncio.Future[SocketType]) -> None:
        self._leg = leg

    def first_bytes(self) -> bytes:
        """Nothing is known before the leg is up."""
        return b""

    def connected(
        self, upstream: SocketType, surplus: bytes, sent: int = 0, edges: int = UNKNOWN
    ) -> None:
        """Hand the leg over; who has asked speaks first."""
        del sent, edges
        if self._leg.done():
            return
        if surplus:
            upstream.close()
            self.failed(UpstreamFailure.PROTOCOL, "the server spoke before it was asked")
        else:
            self._leg.set_result(upstream)

    def failed(self, failure: UpstreamFailure, detail: str, replied: bool = False) -> None:
        """Say why."""
        del replied
        if not self._leg.done():
            self._leg.set_exception(GatewayError(f"{failure}: {detail}" if detail else failure))


async def open_leg(
    make: Callable[[Reactor], Outbound], target: Endpoint, timeout_s: float
) -> socket.socket:
    """A connection to ``target``, blocking, each wait at most ``timeout_s``.

    ``target`` is a name only where the outbound has its server resolve. Raises
    ``GatewayError`` where there is none in time.
    """
    loop = asyncio.get_running_loop()
    leg: asyncio.Future[SocketType] = loop.create_future()
    reactor = running_reactor()
    outbound = make(reactor)
    anywhere = Endpoint("::" if ":" in target.host else "0.0.0.0", 0)  # noqa: S104
    try:
        attempt = outbound.open(FlowFacts(Protocol.TCP, anywhere, target), _Asker(leg))
        try:
            async with asyncio.timeout(timeout_s):
                sock = await leg
        except TimeoutError:
            raise GatewayError(f"{UpstreamFailure.TIMEOUT}: no connection to {target}") from None
        finally:
            if attempt is not None and (leg.cancelled() or not leg.done()):
                attempt.cancel()
    finally:
        outbound.close()
    reactor.release(sock)  # to a library, which reads it as it likes
    return as_blocking(sock, timeout_s)
