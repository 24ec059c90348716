"""The configuration as immutable models: every key, its type, default and description.

The descriptions are the reference: ``gateway schema`` prints them for editors,
and the README's table of keys is checked against them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from gateway.config.assertions import Assertion
from gateway.config.outbounds import BUILT_IN, AnyOutbound, Outbound
from gateway.config.rule_values import read_time_zone
from gateway.config.rules import Device, Rule
from gateway.config.tun import Tun
from gateway.config.values import (
    CongestionControl,
    EntryList,
    Hours,
    InterfaceNames,
    Model,
    Name,
    Networks,
    OneOrMore,
    Port,
    PortRanges,
    Seconds,
    Url,
)
from gateway.decision import DIRECT
from gateway.flow import Protocol
from gateway.marks import DEFAULT_BASE, DEFAULT_TCP_PORT


class Lan(Model):
    """Whose traffic is diverted."""

    interfaces: InterfaceNames = Field(
        default=(), description="interfaces of this machine that the LAN's hosts are behind"
    )
    subnets: dict[Name, Networks] = Field(
        default_factory=dict,
        description="names for parts of the LAN, for use in rules; each a list of CIDRs, v4 and v6",
    )
    devices: dict[Name, Device] = Field(
        default_factory=dict,
        description=(
            "names for devices, for use in rules; each a MAC address, a list of such, or"
            " `{mac: …, hostname: …}`"
        ),
    )
    leases: Annotated[tuple[str, ...], OneOrMore()] = Field(
        default=(),
        description=(
            "lease files of the DHCP server (dnsmasq, ISC dhcpd or Kea memfile), for rules that"
            " ask for a host name; without any, the usual places are looked at"
        ),
    )
    this_machine: bool = Field(
        default=False, description="also divert what this machine itself originates"
    )
    forwarding: bool = Field(
        default=True,
        description="turn IP forwarding on while the gateway is up (flows sent direct need it)",
    )


class Inbound(Model):
    """How traffic is diverted."""

    tcp: Literal["tproxy", "redirect", "tun"] = Field(
        default="tproxy",
        description="how TCP reaches the listener; `tun`: through a device of ours (key `tun`)",
    )
    udp: Literal["tproxy", "tun", "off"] = Field(
        default="tproxy",
        description=(
            "how UDP reaches us: at the listener, or through a device of ours (key `tun`); `off`:"
            " it is routed as if we were not there, except what rules reject"
        ),
    )
    icmp: Literal["direct", "tun", "pretend"] = Field(
        default="direct",
        description=(
            "`direct`: ICMP is routed as if we were not there, except what rules reject; `tun`:"
            " what rules do not route goes to the TUN, where an outbound of type `direct` carries"
            " echo requests, and others refuse them, as they do protocols other than TCP, UDP and"
            " ICMP; `pretend`: the same, but echo requests that"
            " an outbound cannot carry (SOCKS5 knows no ICMP) are answered by the gateway itself,"
            " whether or not anybody is there"
        ),
    )
    port: Port = Field(default=DEFAULT_TCP_PORT, description="port of the listeners, TCP and UDP")
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = Field(
        default="auto",
        description="processes that carry flows, sharing the port; `auto` is one for each core",
    )
    congestion_control: CongestionControl = Field(
        default="auto",
        description=(
            "of TCP towards the LAN, by its name in Linux; `system` is"
            " `net.ipv4.tcp_congestion_control`; `auto` is the same, unless that is `bbr`, whose"
            " pacing costs CPU and gains nothing over one hop: then `reno`"
        ),
    )
    backend: Literal["auto", "iptables", "nftables"] = Field(
        default="auto", description="the firewall that carries our rules"
    )
    classify: Literal["listener", "nfqueue"] = Field(
        default="listener",
        description=(
            "where a flow of the LAN that the kernel cannot decide is decided: by the `listener`"
            " that terminates it, or by its first packet in a packet queue (`nfqueue`), so that"
            " what is direct stays in the kernel and what is refused never begins"
        ),
    )
    queue: Annotated[int, Field(ge=0, le=65535 - 64)] = Field(
        default=7895, description="number of the first packet queue; each worker has one"
    )
    on_failure: Literal["closed", "open"] = Field(
        default="closed",
        description=(
            "when the gateway is dead: `closed` refuses what rules would proxy, `open` routes it on"
        ),
    )
    on_failure_of: dict[Name, Literal["closed", "open"]] = Field(
        default_factory=dict, description="the same for single subnets, by name: `{tv: open}`"
    )
    host_firewall: Literal["allow", "leave"] = Field(
        default="allow",
        description=(
            "`allow` adds one tagged accept rule for diverted packets to this machine's own input"
            " firewall, where it would drop them; `leave` only reports it (gateway doctor)"
        ),
    )

    @property
    def tunnelled(self) -> tuple[Protocol, ...]:
        """The protocols that go into the TUN."""
        return tuple(p for p in Protocol if getattr(self, p) in ("tun", "pretend"))


class Timeouts(Model):
    """Bounds on every wait, in seconds."""

    connect: Seconds = Field(
        default=10, description="TCP connect plus SOCKS handshake with the upstream"
    )
    idle: Seconds = Field(default=3600, description="a flow on which no byte moves is closed")
    half_closed: Seconds = Field(
        default=300, description="the same, once one side has ended its direction"
    )
    udp: Seconds = Field(default=60, description="a UDP flow on which nothing moves is ended")
    udp_dns: Seconds = Field(default=10, description="the same, towards port 53")
    udp_stream: Seconds = Field(
        default=180,
        description="the same, towards port 443, and once 64 KiB have gone each way",
    )
    icmp: Seconds = Field(
        default=10, description="a host's pings of another are forgotten after so long a silence"
    )


class Udp(Model):
    """How UDP is carried."""

    nat: Literal["full-cone", "symmetric"] = Field(
        default="full-cone",
        description=(
            "`full-cone`: a client's socket has one address outside for all that it talks to"
            " (RFC 4787), and anybody may answer there; `symmetric`: one for each, who alone may"
        ),
    )
    flows: Annotated[int, Field(ge=16, le=1_000_000)] = Field(
        default=16384, description="UDP flows at most; the oldest quiet one makes room"
    )
    flows_per_device: Annotated[int, Field(ge=16, le=1_000_000)] = Field(
        default=4096, description="the same, for one source address"
    )


class Icmp(Model):
    """Bounds on the echo requests that go through the TUN."""

    flows: Annotated[int, Field(ge=16, le=65536)] = Field(
        default=1024,
        description="pings (of one host, by one other) at a time; the oldest makes room",
    )
    flows_per_device: Annotated[int, Field(ge=16, le=65536)] = Field(
        default=256, description="the same, for one source address: what a scan of a /24 takes"
    )
    rate: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=5000, description="echo requests a second; more are dropped and counted"
    )
    rate_per_device: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=1000, description="the same, for one source address"
    )


class Sniff(Model):
    """How far a flow's first bytes are looked into, where a rule asks for what they tell."""

    timeout: Annotated[float, Field(gt=0, le=10)] = Field(
        default=0.3,
        description="a client that has not said enough by then (seconds) is decided without",
    )
    bytes: Annotated[int, Field(ge=64, le=16384, strict=True)] = Field(
        default=8192, description="look no further than this into what the client sends"
    )
    ports: PortRanges = Field(
        default=(),
        description=(
            "destination ports to sniff; without it all but those whose servers speak first"
            " (21, 23, 25, 110, 119, 143, 587, 3306, 4190, 5900-5909)"
        ),
    )
    override: Literal["off", "target"] = Field(
        default="off",
        description=(
            "`target` sniffs every flow for a SOCKS server and asks it for the name instead of the"
            " address, so that the name is resolved there; of UDP, QUIC flows from their first"
            " datagrams on, each by an association of its own"
        ),
    )


class InlineRuleSet(Model):
    """A rule set written into the configuration itself."""

    type: Literal["inline"]
    entries: EntryList = Field(
        description=(
            "CIDRs, addresses and names: `a.example` alone, `+.a.example` with all below it,"
            " `*.a.example` one label below it, `keyword:word`, `regex:pattern`"
        )
    )


#: How a list is written; see ``gateway.policy.sets.formats``.
ListFormat = Literal[
    "auto", "yaml", "text", "clash", "hosts", "adguard", "dnsmasq", "geosite", "geoip", "mmdb"
]


class _ListedRuleSet(Model):
    """What sets have that are read from lists."""

    format: ListFormat = Field(
        default="auto",
        description="how the list is written; `auto` tells by the file's name and its content",
    )
    select: str = Field(
        default="",
        max_length=255,
        description=(
            "which list of a file that has many: `NAME` or `NAME@attribute` of a geosite.dat,"
            " `NL` of a geoip.dat, `NL`, `continent:EU` or `AS64500` of an MMDB"
        ),
    )


class FileRuleSet(_ListedRuleSet):
    """A list in a file of its own; read again by itself when the file changes."""

    type: Literal["file"]
    path: str = Field(description="path, relative to the configuration file")


class UrlRuleSet(_ListedRuleSet):
    """A list that is fetched; the last good copy is kept, and used until the network is up."""

    type: Literal["url"]
    url: Url = Field(description="http or https")
    via: Name = Field(default=DIRECT, description="the outbound that it is fetched through")
    interval: Hours = Field(
        default=24, description="hours between two looks whether it has changed"
    )
    max_size: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=64, description="MB; a longer answer is refused"
    )
    timeout: Seconds = Field(default=120, description="seconds that a fetch may take")


RuleSet = Annotated[InlineRuleSet | FileRuleSet | UrlRuleSet, Field(discriminator="type")]


class Geo(Model):
    """Databases that tell where addresses are, in MaxMind's format (MMDB)."""

    country: str = Field(
        default="", description="path to a country database, relative to the configuration file"
    )
    asn: str = Field(
        default="", description="path to an ASN database, relative to the configuration file"
    )


class MarkSettings(Model):
    """Which bits of the packet mark are ours."""

    base: Annotated[int, Field(ge=1, le=0x1000_0000)] = Field(
        default=DEFAULT_BASE,
        description="lowest of the four bits that are ours (0x01000000); a power of two",
    )


class LogSettings(Model):
    """What is logged, to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="`info` has one line for each flow that ended"
    )
    format: Literal["text", "json"] = Field(
        default="text", description="`text` for people, `json` for log collectors"
    )


class Config(Model):
    """The whole file."""

    lan: Lan = Field(description="whose traffic is diverted")
    inbound: Inbound = Field(default_factory=Inbound, description="how traffic is diverted")
    outbounds: dict[Name, Outbound] = Field(
        default_factory=dict,
        description=(
            "ways out, by name; `direct`, `reject`, `reject-icmp` and `reject-drop` exist without"
            " being written"
        ),
    )
    rule_sets: dict[Name, RuleSet] = Field(
        default_factory=dict,
        description="named lists of prefixes and names; shipped ones need no entry",
    )
    rules: tuple[Rule, ...] = Field(
        min_length=1, description="first match wins; the last rule must match everything"
    )
    lists: dict[Name, tuple[Rule, ...]] = Field(
        default_factory=dict, description="lists of rules, which rules lead to with `goto`"
    )
    assertions: tuple[Assertion, ...] = Field(
        default=(),
        description=(
            "flows, and where the rules must send them; `check`, `run` and `reload` refuse a"
            " configuration that sends one elsewhere"
        ),
    )
    geo: Geo = Field(default_factory=Geo, description="databases for `country` and `asn`")
    time_zone: Annotated[str, BeforeValidator(read_time_zone)] | None = Field(
        default=None,
        description="time zone of rules, such as Europe/Berlin; this machine's own by default",
    )
    tun: Tun = Field(default_factory=Tun, description="the device of protocols that are `tun`")
    timeouts: Timeouts = Field(default_factory=Timeouts, description="bounds on every wait")
    sniff: Sniff = Field(
        default_factory=Sniff,
        description="how first bytes are looked into, where rules need a name or a protocol",
    )
    state_dir: str = Field(
        default="/var/lib/gateway",
        description="directory for what outlives a run, relative to the configuration file",
    )
    udp: Udp = Field(default_factory=Udp, description="how UDP is carried")
    icmp: Icmp = Field(
        default_factory=Icmp, description="how much of ICMP is carried, where it goes to the TUN"
    )
    marks: MarkSettings = Field(
        default_factory=MarkSettings, description="which bits of the packet mark are ours"
    )
    log: LogSettings = Field(default_factory=LogSettings, description="what is logged")

    @property
    def takes_own(self) -> bool:
        """Whether this machine's own traffic comes to us, too."""
        return self.lan.this_machine or self.tun.by_routing

    def outbound(self, name: str) -> AnyOutbound:
        """The outbound of that name, the unwritten ones included.

        Raises ``KeyError`` for an unknown name (the loader refuses such a file).
        """
        if name in self.outbounds:
            return self.outbounds[name]
        return BUILT_IN[name]
