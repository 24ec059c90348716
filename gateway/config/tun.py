"""The ``tun:`` section: the device through which protocols marked ``tun`` reach us."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from gateway.config.scalars import refuse
from gateway.config.values import InterfaceName, Model

_CURE = "write it as the first address of a small network, such as 172.29.88.1/30 or fd00:88::1/126"


def _read_interface(value: object) -> IPv4Interface | IPv6Interface:
    try:
        interface = ip_interface(value if isinstance(value, str) and "/" in value else "")
    except ValueError:
        raise refuse("not an address with a prefix length", _CURE) from None
    network = interface.network
    taken = (network.network_address, network.broadcast_address)
    if network.num_addresses < 4 or interface.ip in taken or interface.ip + 1 in taken:
        raise refuse("its network has no room for the next address, which we need too", _CURE)
    if interface.is_loopback or interface.is_multicast or interface.is_link_local:
        raise refuse("nothing can be routed there", _CURE)
    return interface


def _read_v4(value: object) -> IPv4Interface:
    if isinstance(value, IPv4Interface):
        return value
    interface = _read_interface(value)
    if not isinstance(interface, IPv4Interface):
        raise refuse("not an address of IPv4", _CURE)
    return interface


def _read_v6(value: object) -> IPv6Interface:
    if isinstance(value, IPv6Interface):
        return value
    interface = _read_interface(value)
    if not isinstance(interface, IPv6Interface):
        raise refuse("not an address of IPv6", _CURE)
    return interface


class Tun(Model):
    """The TUN device, where `inbound` uses it."""

    name: InterfaceName = Field(default="gateway0", description="name of the device")
    mtu: Annotated[int, Field(ge=1280, le=65535, strict=True)] = Field(
        default=1500,
        description=(
            "its MTU; TCP segments are made to fit (MSS), so set it to the smallest between"
            " here and the LAN's hosts"
        ),
    )
    ipv4: Annotated[IPv4Interface, BeforeValidator(_read_v4)] = Field(
        default=IPv4Interface("172.29.88.1/30"),
        description="its address; nobody else may use the network",
    )
    ipv6: Annotated[IPv6Interface, BeforeValidator(_read_v6)] = Field(
        default=IPv6Interface("fd67:6174:6577:6179::1/126"), description="the same, of IPv6"
    )
    capture: Literal["lan"] = Field(
        default="lan",
        description=(
            "what is routed into it; `lan`: what the LAN sends, by the protocols of `inbound`"
            " that are `tun`, and the kernel does not decide by itself"
        ),
    )
