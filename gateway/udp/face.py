"""As what the gateway speaks to clients in the name of others: by sockets, or by packets."""

from __future__ import annotations

import time
from typing import NamedTuple, Protocol

from gateway.flow import Endpoint
from gateway.icmp.errors import MOST_PER_DEVICE, MOST_PER_S
from gateway.icmp.limits import Rate
from gateway.kernel.icmp_errors import ErrorSender
from gateway.kernel.udp_sockets import UdpSockets
from gateway.relay.udp import Replies
from gateway.wire.icmp_error import IcmpError


class ErrorTeller(Protocol):
    """Who tells clients of ICMP errors."""

    def tell_of_datagram(
        self, error: IcmpError, client: Endpoint, remote: Endpoint, mtu: int = 0, host: str = ""
    ) -> bool:
        """Tell one, in the name of ``host`` or else of ``remote``; False: it was not told."""


class Face(NamedTuple):
    """Where replies come from, and errors."""

    replies: Replies
    errors: ErrorTeller


def by_sockets(replies: Replies, sockets: UdpSockets) -> Face:
    """By sockets; of the errors that may be told in a second one device does not get all."""
    rate = Rate()

    def may_be_told(device: str) -> bool:
        return rate.allows(device, MOST_PER_S, MOST_PER_DEVICE, time.monotonic())

    return Face(replies, ErrorSender(sockets, may_be_told))
