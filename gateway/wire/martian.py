"""Addresses that no packet may have that is forwarded (RFC 1812 section 5.3.7, RFC 6890)."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

#: "This network" and the limited broadcast; IPv6 has no such things.
_V4_NEITHER: Final = (ip_network("0.0.0.0/8"), ip_network("255.255.255.255/32"))


@lru_cache(maxsize=4096)
def martian(source: bytes, destination: bytes) -> str | None:
    """Why a packet from there to there is none for a router; None: it is one.

    The words stand in names of counters.
    """
    if _is_nowhere(ip_address(source)):
        return "martian_source"
    towards = ip_address(destination)
    if towards.is_multicast:
        return "multicast"
    return "martian_destination" if _is_nowhere(towards) else None


def _is_nowhere(address: IPv4Address | IPv6Address) -> bool:
    if address.is_multicast or address.is_loopback or address.is_unspecified:
        return True
    if isinstance(address, IPv4Address):
        return any(address in network for network in _V4_NEITHER)
    # Link-local addresses mean nothing beyond their link, and IPv4 goes by itself.
    return address.is_link_local or address.ipv4_mapped is not None
