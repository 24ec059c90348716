"""Rules as a person writes them: what is asked of a flow, and what becomes of it."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from gateway.config.rule_values import (
    read_asn,
    read_country,
    read_device,
    read_dscp,
    read_hostname,
    read_mac,
    read_mark,
    read_time,
    read_weekdays,
)
from gateway.config.scalars import read_destination, read_domain
from gateway.config.values import (
    ControlGroup,
    InterfaceNames,
    Model,
    Name,
    Names,
    Networks,
    OneOrMore,
    PortRanges,
    User,
)

#: A CIDR, an address, or the name of a rule set.
Destination = Annotated[IPv4Network | IPv6Network | Name, BeforeValidator(read_destination)]
Protocols = Annotated[tuple[Literal["tcp", "udp", "icmp"], ...], OneOrMore()]
Destinations = Annotated[tuple[Destination, ...], OneOrMore()]
DomainPattern = Annotated[str, BeforeValidator(read_domain)]
DomainPatterns = Annotated[tuple[DomainPattern, ...], OneOrMore()]
Sniffed = Literal[
    "tls", "http", "http2", "quic", "dtls", "ssh", "rdp", "dns", "stun", "ntp", "bittorrent"
]
Devices = Annotated[tuple[Annotated[str, BeforeValidator(read_device)], ...], OneOrMore()]
Macs = Annotated[tuple[Annotated[str, BeforeValidator(read_mac)], ...], OneOrMore()]
HostNames = Annotated[tuple[Annotated[str, BeforeValidator(read_hostname)], ...], OneOrMore()]
Dscps = Annotated[tuple[Annotated[int, BeforeValidator(read_dscp)], ...], OneOrMore()]
Countries = Annotated[tuple[Annotated[str, BeforeValidator(read_country)], ...], OneOrMore()]
Asns = Annotated[tuple[Annotated[int, BeforeValidator(read_asn)], ...], OneOrMore()]
Times = Annotated[tuple[Annotated[str, BeforeValidator(read_time)], ...], OneOrMore()]
Weekdays = Annotated[tuple[Annotated[str, BeforeValidator(read_weekdays)], ...], OneOrMore()]
Cgroups = Annotated[tuple[ControlGroup, ...], OneOrMore()]
Accounts = Annotated[tuple[User, ...], OneOrMore()]
SniffedProtocols = Annotated[tuple[Sniffed, ...], OneOrMore()]
#: Nested conditions; a single one is a list of one.
Matches = Annotated["tuple[Match, ...]", OneOrMore()]


def _as_device(value: object) -> object:
    return {"mac": value} if isinstance(value, str | list) else value


class _Device(Model):
    """A device of the LAN: one that has one of these addresses or names."""

    mac: Macs = Field(default=(), description="its MAC addresses")
    hostname: HostNames = Field(default=(), description="its names in DHCP leases")


#: A MAC address, or a list of such, stands for a device that has them.
Device = Annotated[_Device, BeforeValidator(_as_device)]


class Match(Model):
    """What is asked of a flow: every key must match (AND), every list is OR."""

    subnet: Names = Field(default=(), description="source is in one of these named subnets")
    source: Networks = Field(default=(), description="source address is in one of these CIDRs")
    device: Devices = Field(
        default=(),
        description=(
            "source is one of these devices: a name of `lan.devices`, a MAC address, or"
            " `dhcp:NAME` with the host name that its lease has"
        ),
    )
    destination: Destinations = Field(
        default=(), description="destination is in one of these CIDRs or named rule sets"
    )
    port: PortRanges = Field(default=(), description="destination port or range")
    source_port: PortRanges = Field(default=(), description="source port or range")
    protocol: Protocols = Field(default=(), description="tcp, udp or icmp")
    interface: InterfaceNames = Field(default=(), description="arrived on one of these interfaces")
    rule_set: Names = Field(default=(), description="destination is in one of these rule sets")
    domain: DomainPatterns = Field(
        default=(),
        description=(
            "destination's name: `a.example` alone, `+.a.example` with all below it, `.a.example`"
            " all below it alone, `*.a.example` with one label for each `*`, `keyword:a` anywhere"
            " in it, `regex:^a[0-9]`"
        ),
    )
    country: Countries = Field(
        default=(), description="destination's country, two letters (needs `geo.country`)"
    )
    asn: Asns = Field(default=(), description="destination's autonomous system (needs `geo.asn`)")
    ip_version: Literal[4, 6] | None = Field(default=None, description="4 or 6")
    dscp: Dscps = Field(
        default=(), description="DSCP of the flow's first packet, by number or name (`ef`)"
    )
    sniffed: SniffedProtocols = Field(
        default=(), description="the protocol that the client's first bytes are of"
    )
    time: Times = Field(
        default=(),
        description=(
            "hours of the day, as `22:00-07:00`; over midnight, the weekday is that of the start"
        ),
    )
    weekday: Weekdays = Field(default=(), description="`mon` to `sun`, or a range as `mon-fri`")
    uid: Accounts = Field(
        default=(), description="user, by number or name, of this machine's own flows"
    )
    gid: Accounts = Field(
        default=(), description="group, by number or name, of this machine's own flows"
    )
    cgroup: Cgroups = Field(
        default=(),
        description="cgroup path, of this machine's own flows; what is below it is meant too",
    )
    all: Matches = Field(default=(), description="every one of these matches")
    any: Matches = Field(default=(), description="at least one of these matches")
    not_: Matches = Field(default=(), alias="not", description="none of these matches")

    @property
    def asked(self) -> dict[str, object]:
        """The keys that ask something of a flow, as written, with what they ask."""
        return {
            field.alias or name: value
            for name, field in Match.model_fields.items()
            if (value := getattr(self, name)) not in ((), None)
        }


class Rule(Match):
    """One rule: every key must match (AND), every list is OR; the first match wins."""

    to: Name = Field(
        default="",
        description=(
            "an outbound's name, `direct`, or `reject` (a TCP reset, an ICMP error to UDP),"
            " `reject-icmp`, `reject-drop`"
        ),
    )
    goto: Name = Field(
        default="",
        description=(
            "instead of `to`: go on with this one of `lists`, and where nothing there matches,"
            " with the next rule here"
        ),
    )
    log: bool = Field(default=False, description="log the flows that this rule decides as warnings")
    mark: Annotated[str, BeforeValidator(read_mark)] | None = Field(
        default=None,
        description=(
            "with `to: direct`: the mark that the flow's packets leave with, for your own QoS or"
            " routing, as `0x10/0xff`; without a mask, these bits are set and no others touched"
        ),
    )
    sniff: bool = Field(
        default=True,
        description="`off` never waits for the client's first bytes on behalf of this rule",
    )
    udp_fallback: Literal["reject", "direct", "next"] = Field(
        default="reject",
        description=(
            "UDP whose outbound carries none is refused, sent direct, or left to the rules below;"
            " port 443 (QUIC) is always refused, so that browsers take TCP"
        ),
    )

    @property
    def is_catch_all(self) -> bool:
        """Whether the rule decides every flow, so that none below it can fire."""
        return not self.asked and not self.goto
