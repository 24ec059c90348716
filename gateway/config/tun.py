"""The ``tun:`` section: the device through which protocols marked ``tun`` reach us."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface, ip_interface, ip_network
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from gateway.config.scalars import refuse
from gateway.config.values import InterfaceName, Model, Networks

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
            "its MTU; TCP segments are made to fit (MSS), and what goes to the LAN's hosts is made"
            " smaller where a router says so"
        ),
    )
    ipv4: Annotated[IPv4Interface, BeforeValidator(_read_v4)] = Field(
        default=IPv4Interface("172.29.88.1/30"),
        description="its address; nobody else may use the network",
    )
    ipv6: Annotated[IPv6Interface, BeforeValidator(_read_v6)] = Field(
        default=IPv6Interface("fd67:6174:6577:6179::1/126"), description="the same, of IPv6"
    )
    capture: Literal["lan", "default-route", "prefixes", "fake-ip"] = Field(
        default="lan",
        description=(
            "what is routed into it; `lan`: what the LAN sends, by the protocols of `inbound`"
            " that are `tun`, and the kernel does not decide by itself. The others are taken by"
            " routes, whoever sends, this machine too, and all of it is decided by the gateway:"
            " `default-route` is what no connected or static route is for"
        ),
    )
    prefixes: Networks = Field(
        default=(), description="what `capture: prefixes` takes; CIDRs, v4 and v6"
    )
    fake_ip: Networks = Field(
        default=(ip_network("198.18.0.0/15"), ip_network("fd67:6174:6577:617a::/64")),
        description=(
            "what `capture: fake-ip` takes: a range of each family that nobody uses; a flow goes"
            " on by the name that its first bytes tell, or is refused"
        ),
    )
    strategy: Literal["suppress", "split_default"] = Field(
        default="suppress",
        description=(
            "how the default route is taken: `suppress` by ip rules and a table of ours, past"
            " which our own sockets are led by their mark; `split_default` by 0/1 and 128/1 in the"
            " main table, past which they need `route:` device, source, host_route or netns, and"
            " which cannot fail closed"
        ),
    )

    @property
    def by_routing(self) -> bool:
        """Whether routes take it, and no marks."""
        return self.capture != "lan"
