"""Address families and prefixes."""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import Final

Network = IPv4Network | IPv6Network


class Family(StrEnum):
    """Address family of a rule, a set or a route."""

    V4 = "ipv4"
    V6 = "ipv6"


EVERYTHING: Final[dict[Family, Network]] = {
    Family.V4: IPv4Network("0.0.0.0/0"),
    Family.V6: IPv6Network("::/0"),
}
