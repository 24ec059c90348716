"""The configuration that ``gateway init`` writes: commented, from what the machine looks like."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import Protocol

from gateway.config.scalars import INTERFACE_PATTERN
from gateway.config.subject import overlap
from gateway.config.values import Network

#: Addresses of sites: RFC 1918, RFC 4193.
_SITE: tuple[Network, ...] = (
    IPv4Network("10.0.0.0/8"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv6Network("fc00::/7"),
)
#: Interfaces with private addresses that no LAN is behind: containers, virtual machines, tunnels.
_VIRTUAL = re.compile(
    r"lo$|docker|br-[0-9a-f]{12}$|veth|virbr|vmnet|lxc|lxd|cni|flannel|podman"
    r"|wg|tun|tap|ppp|tailscale|zt"
)


class HostInterface(Protocol):
    """An interface, as ``gateway.plan.host`` has it."""

    @property
    def name(self) -> str:
        """As the kernel has it."""

    @property
    def addresses(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """With their prefix lengths."""


class HostRoute(Protocol):
    """A default route, as ``gateway.plan.host`` has it."""

    @property
    def interface(self) -> str:
        """The interface it leaves by."""

    @property
    def via(self) -> str | None:
        """The next hop, if there is one."""


class Host(Protocol):
    """What of the machine's facts is needed here."""

    @property
    def interfaces(self) -> Sequence[HostInterface]:
        """All of this machine's."""

    @property
    def default_routes(self) -> Sequence[HostRoute]:
        """Those of the main table."""


def starter(host: Host) -> str:
    """A configuration that loads without a problem and, until it is edited, proxies nothing.

    The LAN is what has a private address and does not carry the default route.
    """
    lan, passed_over = _lan(host)
    return _TEXT.format(
        uplink=_uplink(host),
        lan=_lan_section(lan, passed_over),
        this_machine="false" if lan else "true   # no LAN was found: see `interfaces` above",
    )


def _lan(host: Host) -> tuple[list[HostInterface], list[str]]:
    """The LAN's interfaces, and the names of those that were left out as virtual."""
    uplinks = {route.interface for route in host.default_routes}
    inside = [
        interface
        for interface in host.interfaces
        if interface.name not in uplinks
        and re.match(INTERFACE_PATTERN, interface.name)
        and any(map(_is_private, interface.addresses))
    ]
    virtual = [interface.name for interface in inside if _VIRTUAL.match(interface.name)]
    return [interface for interface in inside if interface.name not in virtual], virtual


def _is_private(address: IPv4Interface | IPv6Interface) -> bool:
    return any(address.version == site.version and address in site for site in _SITE)


def _uplink(host: Host) -> str:
    lines = [
        f"# The default route leaves by {route.interface}"
        + (f" (via {route.via})." if route.via else ".")
        for route in host.default_routes
    ]
    return "\n".join(dict.fromkeys(lines)) or "# This machine has no default route now."


def _lan_section(lan: Sequence[HostInterface], passed_over: Sequence[str]) -> str:
    lines = [f"  interfaces: {json.dumps([interface.name for interface in lan])}"]
    if passed_over:
        lines.append(f"  # Left out, as containers or tunnels: {', '.join(passed_over)}")
    subnets = list(_subnets(lan))
    if subnets:
        lines += ["  # Names for parts of the LAN, for use in rules: `subnet: NAME`.", "  subnets:"]
    return "\n".join(lines + subnets)


def _subnets(lan: Sequence[HostInterface]) -> Iterator[str]:
    """A line for what is behind each interface; no address is in two of them."""
    seen: list[Network] = []
    for number, interface in enumerate(lan, start=1):
        own: list[str] = []
        for address in interface.addresses:
            network = address.network
            if not address.is_link_local and not any(overlap(network, other) for other in seen):
                own.append(str(network))
                seen.append(network)
        if own:
            yield f"    lan{number}: {json.dumps(own)}   # behind {interface.name}"


_TEXT = """\
# gateway: whose traffic is diverted, and by which way it leaves.
# `gateway check` finds mistakes, `gateway plan` shows what would change on this machine.
# Every key is described by `gateway schema`.
{uplink}

lan:
  # The interfaces that the LAN's hosts are behind; only what arrives there is diverted.
{lan}
  # Also divert what this machine itself sends.
  this_machine: {this_machine}

inbound:
  tcp: tproxy           # tproxy, or redirect where the kernel has no TPROXY
  backend: auto         # auto, nftables or iptables
  on_failure: closed    # when the gateway is dead: closed (nothing leaks) or open (routed on)

# Ways out. `direct` and `reject` exist without being written.
outbounds:
  proxy:
    type: socks5
    server: 192.0.2.1   # CHANGE: the address or name of your SOCKS5 server
    port: 1080
    # username: me
    # password: !env PROXY_PASSWORD     # or !file PATH, or !credential NAME (systemd)

# The first rule that matches decides. Every key of a rule must match; a list matches if
# one of its entries does.
rules:
  # What stays inside: private, link-local and multicast addresses.
  - {{destination: private, to: direct}}
  # - {{destination: [198.51.100.0/24], port: [80, 443], to: proxy}}
  # - {{subnet: NAME, port: 25, to: reject}}
  # Everything else. CHANGE to `to: proxy` once the server above is right.
  - {{to: direct}}
"""
