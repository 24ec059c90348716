"""Ways out, as an owner writes them: every key of each type."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SecretStr

from gateway.config.values import (
    Address,
    CongestionControl,
    ControlGroup,
    InterfaceName,
    Model,
    Name,
    Names,
    Port,
    Strategy,
    Url,
    User,
)
from gateway.decision import DIRECT, REJECT, REJECT_DROP, REJECT_ICMP


class _Egress(Model):
    """What every outbound that opens sockets has."""

    interface: InterfaceName | None = Field(
        default=None, description="leave by this interface only"
    )
    source: Address | None = Field(
        default=None, description="source address to bind; must be one of this machine's"
    )
    netns: Name | None = Field(
        default=None, description="network namespace (ip netns) that its sockets are made in"
    )
    congestion_control: CongestionControl = Field(
        default="system",
        description=(
            "of its TCP connections, by its name in Linux (`bbr` helps where a far server is"
            " reached over a lossy line); `system` is `net.ipv4.tcp_congestion_control`"
        ),
    )


class Socks5Outbound(_Egress):
    """A SOCKS5 server (RFC 1928), with or without user and password (RFC 1929)."""

    type: Literal["socks5"]
    route: Strategy = Field(
        default="auto",
        description=(
            "as for `direct`; besides: `host_route` (a route to the server alone), and for a proxy"
            " program on this very machine `uid` or `cgroup` (what that program sends is not"
            " diverted); `auto` takes uid or cgroup where that key is given, and never device for"
            " a server on this machine"
        ),
    )
    uid: User | None = Field(
        default=None, description="user that the proxy program on this machine runs as"
    )
    cgroup: ControlGroup | None = Field(
        default=None,
        description=(
            "control group (v2) that the proxy program on this machine runs in, such as"
            " `system.slice/ssh-socks.service`; name a slice that outlives the program"
        ),
    )
    server: str = Field(min_length=1, max_length=255, description="address or name of the server")
    port: Port = Field(default=1080, description="port of the server")
    username: str | None = Field(
        default=None, min_length=1, max_length=255, description="RFC 1929 user"
    )
    password: SecretStr | None = Field(
        default=None, description="RFC 1929 password; best by !env NAME or !file PATH"
    )
    handshake: Literal["auto", "pipelined", "strict"] = Field(
        default="auto",
        description=(
            "`pipelined` sends the whole handshake at once, a round trip sooner, and what the"
            " client has said already right behind, another one sooner; `strict` waits for each"
            " answer; `auto` tries the handshake with one flow, without losing it, and remembers"
        ),
    )
    pool: Literal["auto", "off"] = Field(
        default="auto",
        description=(
            "`auto` keeps connections ready for the flows to come, as many as lately came while"
            " one was made ready, where that takes 5 ms or more; none while there are no flows"
        ),
    )
    fast_open: bool = Field(
        default=False,
        description=(
            "the handshake's first bytes go with the SYN, a round trip sooner, to a server that"
            " knows TCP Fast Open (RFC 7413), from the second connection on; others are none the"
            " worse. Needs bit 0 of `net.ipv4.tcp_fastopen` (Linux sets it)"
        ),
    )
    udp: Literal["auto"] | bool = Field(
        default="auto",
        description=(
            "whether the server relays UDP (UDP ASSOCIATE); `auto` asks it, and keeps an"
            " association ready"
        ),
    )


class DirectOutbound(_Egress):
    """Straight to the destination, through this machine's own sockets."""

    type: Literal["direct"]
    route: Literal["auto", "mark", "device", "source", "netns"] = Field(
        default="auto",
        description=(
            "how its own packets stay out of the diversion, and of what else takes the default"
            " route: `mark` (fwmark), `device` (SO_BINDTODEVICE to `interface`), `source` (an"
            " address of `interface`, or `source`, with a routing table of its own), `netns`"
            " (sockets of another network namespace); `auto` takes netns, or device where"
            " `interface` is given, and mark otherwise"
        ),
    )
    preserve_source: bool = Field(
        default=False, description="the server sees the LAN client's own address"
    )


class RejectOutbound(Model):
    """Refuse the flow."""

    type: Literal["reject"]
    answer: Literal["tcp-reset", "icmp", "drop"] = Field(
        default="tcp-reset",
        description="what the client sees: a TCP reset, an ICMP error, or silence",
    )


class Probe(Model):
    """How the members of a group are tried."""

    url: Url = Field(
        default="http://www.gstatic.com/generate_204",
        description=(
            "http or https; asked for through each member, which is well if the answer's status"
            " is 200 to 299"
        ),
    )
    every: Annotated[float, Field(ge=1, le=86400)] = Field(
        default=60,
        description=(
            "seconds between two probes of a member; one through which a flow has failed is"
            " probed at once"
        ),
    )
    timeout: Annotated[float, Field(gt=0, le=60)] = Field(
        default=5, description="seconds that a probe may take"
    )
    lazy: bool = Field(default=True, description="probe only while flows use the group")


class _Group(Model):
    """What every group has."""

    members: Names = Field(
        description="outbounds by name, `direct`, `reject` or other groups, in order of preference"
    )
    interrupt: bool = Field(
        default=False,
        description="when the group takes another member, end the flows that go by the old one",
    )


class _ProbingGroup(_Group):
    """What groups have that look after their members by themselves."""

    probe: Probe = Field(default_factory=Probe, description="how its members are tried")


class SelectGroup(_Group):
    """The member that the owner has chosen; the first until then."""

    type: Literal["select"]


class FallbackGroup(_ProbingGroup):
    """The first member that is well."""

    type: Literal["fallback"]


class UrlTestGroup(_ProbingGroup):
    """The member by which the probe is answered soonest."""

    type: Literal["url-test"]
    tolerance: Annotated[float, Field(ge=0, le=10_000)] = Field(
        default=50,
        description="milliseconds by which another member must be faster to be taken instead",
    )


class LoadBalanceGroup(_ProbingGroup):
    """All members that are well, each for a part of the flows."""

    type: Literal["load-balance"]
    by: Literal["source", "destination"] = Field(
        default="source",
        description=(
            "what goes by one member together: all flows of a client, or all to a destination (its"
            " name, where that is known); a member that is lost moves its own part alone"
        ),
    )


Group = SelectGroup | FallbackGroup | UrlTestGroup | LoadBalanceGroup
#: Groups whose members are probed.
ProbingGroup = FallbackGroup | UrlTestGroup | LoadBalanceGroup

#: Outbounds that exist without being written down.
BUILT_IN: dict[str, DirectOutbound | RejectOutbound] = {
    DIRECT: DirectOutbound(type="direct"),
    REJECT: RejectOutbound(type="reject"),
    REJECT_ICMP: RejectOutbound(type="reject", answer="icmp"),
    REJECT_DROP: RejectOutbound(type="reject", answer="drop"),
}

AnyOutbound = Socks5Outbound | DirectOutbound | RejectOutbound | Group
Outbound = Annotated[AnyOutbound, Field(discriminator="type")]
