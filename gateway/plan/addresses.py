"""Address families and prefixes."""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Literal

Network = IPv4Network | IPv6Network


class Family(StrEnum):
    """Address family of a rule, a set or a route."""

    V4 = "ipv4"
    V6 = "ipv6"

    @property
    def version(self) -> Literal[4, 6]:
        """As ``ipaddress`` has it."""
        return 4 if self is Family.V4 else 6


EVERYTHING: Final[dict[Family, Network]] = {
    Family.V4: IPv4Network("0.0.0.0/0"),
    Family.V6: IPv6Network("::/0"),
}
