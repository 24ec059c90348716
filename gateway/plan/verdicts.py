"""What a netfilter rule does with a packet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gateway.marks import Mark


@dataclass(frozen=True, slots=True)
class Count:
    """Count the packet and go on with the next rule."""


@dataclass(frozen=True, slots=True)
class Log:
    """Write the packet's addresses to the kernel's log behind ``prefix``, and go on.

    ``prefix`` has at most 28 characters (xt_LOG); at most ten lines a second are written.
    """

    prefix: str


@dataclass(frozen=True, slots=True)
class Accept:
    """End this hook for this packet (as far as this table is concerned)."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Drop it, silently."""


@dataclass(frozen=True, slots=True)
class Return:
    """Back to the calling chain; from a hooked chain: on, untouched."""


@dataclass(frozen=True, slots=True)
class Jump:
    """Into another chain, and come back at its end."""

    chain: str


@dataclass(frozen=True, slots=True)
class Goto:
    """Into another chain, without coming back to this one."""

    chain: str


@dataclass(frozen=True, slots=True)
class SetMark:
    """Set our bits of the packet mark (or connmark), keep the others, go on."""

    mark: Mark
    of: Literal["packet", "connection"] = "packet"


@dataclass(frozen=True, slots=True)
class Tproxy:
    """Hand the packet to the transparent listener of its family (loopback address, ``port``).

    Where no listener is there, the rule does not match (nft) or drops (xt): the rule that
    follows it must be what ``on_failure`` says.
    """

    port: int


@dataclass(frozen=True, slots=True)
class Queue:
    """Let a program decide, by the packet queues ``first`` to ``last``, spread by addresses.

    The packet comes back to the start of its hook with the mark that it was given. Where no
    program listens it is dropped, or with ``bypass`` leaves the whole hook as it came.
    """

    first: int
    last: int
    bypass: bool


@dataclass(frozen=True, slots=True)
class Redirect:
    """Rewrite the destination to this machine, ``port`` (nat hooks only)."""

    port: int


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse with a TCP reset or an ICMP error (forward and output hooks only)."""

    answer: Literal["tcp-reset", "icmp-port-unreachable", "icmp-admin-prohibited"]


Verdict = (
    Count
    | Log
    | Accept
    | Drop
    | Return
    | Jump
    | Goto
    | SetMark
    | Tproxy
    | Queue
    | Redirect
    | Reject
)
