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


class Owner(NamedTuple):
    """Whose a flow of this machine is; None for what could not be learnt.

    ``cgroup`` is a path below the cgroup2 mount, without a slash at either end.
    """

    uid: int | None = None
    gid: int | None = None
    cgroup: str | None = None


class FlowFacts(NamedTuple):
    """What rules may see.

    A fact that no rule asks for (``Policy.needs``) need not be fetched, and its default
    stands. ``interface``, ``mac`` (lower case) and ``hostname`` (DHCP, lower case) are of
    the source, and empty or None where unknown; ``dscp`` is 0 to 63; ``owner`` is None for
    flows that this machine did not begin.

    ``name`` of the destination (lower case, A-labels, no final dot) and the ``sniffed``
    protocol cost time to learn: None is *not looked for yet*, empty *looked for, and there
    is none*.
    """

    protocol: Protocol
    source: Endpoint
    destination: Endpoint
    interface: str = ""
    mac: str | None = None
    hostname: str | None = None
    dscp: int | None = None
    owner: Owner | None = None
    name: str | None = None
    sniffed: str | None = None


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
    EVICTED = "evicted"
    SWITCHED = "switched"
    LOOP = "loop"
    FAKE_ADDRESS = "fake-address"
    NO_RESOURCES = "no-resources"
    SHUTDOWN = "shutdown"
    INTERNAL_ERROR = "internal-error"
