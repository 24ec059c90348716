"""A flow as values: who talks to whom, and what rules may see of it.

These are ``NamedTuple``s, not dataclasses: they are made once per connection on
the hot path, where a frozen dataclass costs three times as much to build.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Endpoint(NamedTuple):
    """An address (canonical text, IPv4 or IPv6, no zone) or a name, with a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Protocol(StrEnum):
    """Transport of a flow, by the names used in rules."""

    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"


class FlowFacts(NamedTuple):
    """What rules may see. ``interface`` is empty where no rule asks for it."""

    protocol: Protocol
    source: Endpoint
    destination: Endpoint
    interface: str = ""


class CloseReason(StrEnum):
    """Why a flow ended. The values stand in logs and counters: do not rename them."""

    DONE = "done"
    CLIENT_RESET = "client-reset"
    UPSTREAM_RESET = "upstream-reset"
    UPSTREAM_REFUSED = "upstream-refused"
    UPSTREAM_UNREACHABLE = "upstream-unreachable"
    UPSTREAM_DENIED = "upstream-denied"
    UPSTREAM_PROTOCOL = "upstream-protocol"
    CONNECT_TIMEOUT = "connect-timeout"
    IDLE_TIMEOUT = "idle-timeout"
    REJECTED = "rejected"
    LOOP = "loop"
    NOT_DIVERTED = "not-diverted"
    NO_RESOURCES = "no-resources"
    SHUTDOWN = "shutdown"
    INTERNAL_ERROR = "internal-error"
