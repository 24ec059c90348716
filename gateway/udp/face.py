"""As what the gateway speaks to clients in the name of others: by sockets, or by packets."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from gateway.flow import Endpoint
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
