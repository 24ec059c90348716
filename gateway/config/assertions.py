"""Assertions: flows that the owner writes down, and where they must go."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Annotated, Final, NamedTuple

from pydantic import BeforeValidator, Field

from gateway.config.domains import canonical_name
from gateway.config.rule_values import DHCP_PREFIX, read_device, weekday_range
from gateway.config.rules import Device, Sniffed
from gateway.config.scalars import NAME_PATTERN, port_range, read_address, refuse
from gateway.config.values import Address, InterfaceName, Model, Name
from gateway.flow import Endpoint, Protocol

#: The source port of a flow that is only thought of: among those that clients use (RFC 6056).
SOURCE_PORT: Final = 50000
#: Its destination, where only a name is known: for documentation (RFC 5737, RFC 3849).
SOMEWHERE: Final = {4: "192.0.2.1", 6: "2001:db8::1"}

_TARGET_CURE = "write www.example:443, 203.0.113.5:53/udp, [2001:db8::1]:443 or 203.0.113.5/icmp"
_TARGET = re.compile(
    r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^\s/:\[\]]+))(?::(?P<port>\d{1,5}))?"
    r"(?:/(?P<protocol>tcp|udp|icmp))?",
    re.ASCII,
)
_DIGITS = re.compile(r"[0-9.]+")
_MOMENT = re.compile(r"(?:(?P<day>[a-z]{3})\s+)?(?P<hour>\d{1,2}):(?P<minute>\d\d)", re.ASCII)


class Target(NamedTuple):
    """Where an assertion's flow goes: an address or a canonical name."""

    protocol: Protocol
    destination: Endpoint
    by_name: bool


def read_target(value: object) -> str:
    """``HOST:PORT``, as it was written. Raises ``PydanticCustomError``."""
    target(value)
    return str(value)


def target(value: object) -> Target:
    """``HOST:PORT/PROTOCOL`` taken apart; TCP where none is said.

    Raises ``PydanticCustomError``.
    """
    matched = _TARGET.fullmatch(value.strip()) if isinstance(value, str) else None
    if matched is None:
        raise refuse("not a target", _TARGET_CURE)
    protocol = Protocol(matched["protocol"] or "tcp")
    if (matched["port"] is None) != (protocol is Protocol.ICMP):
        raise refuse("TCP and UDP have ports, and ICMP has none", _TARGET_CURE)
    port = 0 if matched["port"] is None else port_range(matched["port"])[0]
    host = matched["v6"] or matched["host"]
    try:
        return Target(protocol, Endpoint(str(ip_address(host)), port), by_name=False)
    except ValueError:
        name = None if matched["v6"] else canonical_name(host)
    if name is None:
        raise refuse("neither an address nor a host name", _TARGET_CURE)
    return Target(protocol, Endpoint(name, port), by_name=True)


def read_moment(value: object) -> str:
    """``fri 23:00``, as it was written. Raises ``PydanticCustomError``."""
    minutes_of(value)
    return str(value)


def minutes_of(value: object) -> tuple[int, ...]:
    """The minutes of the week that ``fri 23:00`` means; without a day, one for each day.

    Raises ``PydanticCustomError``.
    """
    cure = "write 23:00 (on every day) or fri 23:00"
    matched = _MOMENT.fullmatch(value.lower().strip()) if isinstance(value, str) else None
    if matched is None or int(matched["hour"]) > 23 or int(matched["minute"]) > 59:
        raise refuse("not a time", cure)
    days = weekday_range(matched["day"] or "mon-sun")
    return tuple((day * 24 + int(matched["hour"])) * 60 + int(matched["minute"]) for day in days)


def facts_of_device(
    devices: Mapping[str, Device], device: str | None
) -> tuple[str | None, str | None]:
    """Of a device as rules write it: its first MAC address, and its first host name."""
    known = devices.get(device or "")
    if known is not None:
        return next(iter(known.mac), None), next(iter(known.hostname), None)
    if device is not None and device.startswith(DHCP_PREFIX):
        return None, device.removeprefix(DHCP_PREFIX)
    return device, None


def read_origin(value: object) -> str:
    """An address, or the name of a subnet. Raises ``PydanticCustomError``."""
    if isinstance(value, str) and re.match(NAME_PATTERN, value) and not _DIGITS.fullmatch(value):
        return value
    return str(read_address(value))


class Assertion(Model):
    """A flow, and where the rules must send it."""

    origin: Annotated[str, BeforeValidator(read_origin)] = Field(
        alias="from", description="where the flow comes from: a named subnet, or an address"
    )
    device: Annotated[str, BeforeValidator(read_device)] | None = Field(
        default=None, description="the device that it comes from, as in rules"
    )
    interface: InterfaceName | None = Field(
        default=None, description="the interface that it arrives on; the LAN's, where it has one"
    )
    to: Annotated[str, BeforeValidator(read_target)] = Field(
        description="where it goes: `HOST:PORT`, with `/udp` for UDP; `ADDRESS/icmp`"
    )
    address: Address | None = Field(
        default=None,
        description="the address that a name in `to` has; 192.0.2.1 or 2001:db8::1 where not said",
    )
    sniffed: Sniffed | None = Field(
        default=None, description="the protocol that its first bytes are of; none of those we know"
    )
    at: Annotated[str, BeforeValidator(read_moment)] | None = Field(
        default=None,
        description="when: `fri 23:00`, or `23:00` on every day; at any time where not said",
    )
    expect: Name = Field(
        description="the outbound that it must take; `reject` is any outbound that refuses"
    )
