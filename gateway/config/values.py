"""Types that the schema's sections share: addresses, names, and lists that may be one value."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from gateway.config.scalars import (
    CGROUP_PATTERN,
    CONGESTION_PATTERN,
    INTERFACE_PATTERN,
    NAME_PATTERN,
    URL_PATTERN,
    read_address,
    read_entry,
    read_network,
    read_ports,
    read_user,
)


def _as_tuple(value: object) -> object:
    if isinstance(value, list | tuple):
        return tuple(value)
    return (value,)


class OneOrMore:
    """A single value where a list is meant is a list of one: ``port: 443``."""

    def __get_pydantic_core_schema__(
        self, source: type, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Wrap what is not a list."""
        return core_schema.no_info_before_validator_function(_as_tuple, handler(source))

    def __get_pydantic_json_schema__(
        self, core: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Tell editors that both forms are legal."""
        array = handler(core)
        return {"anyOf": [array["items"], array]}


Address = Annotated[IPv4Address | IPv6Address, BeforeValidator(read_address)]
Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(read_network)]

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
InterfaceName = Annotated[str, Field(pattern=INTERFACE_PATTERN)]
Strategy = Literal["auto", "mark", "device", "source", "netns", "host_route", "uid", "cgroup"]
ControlGroup = Annotated[str, Field(pattern=CGROUP_PATTERN)]
#: A user of this machine, by number or name.
User = Annotated[int | str, BeforeValidator(read_user)]
CongestionControl = Annotated[str, Field(pattern=CONGESTION_PATTERN)]
#: http or https.
Url = Annotated[str, Field(pattern=URL_PATTERN, max_length=2048)]
Port = Annotated[int, Field(ge=1, le=65535, strict=True)]
Networks = Annotated[tuple[Network, ...], OneOrMore()]
Names = Annotated[tuple[Name, ...], OneOrMore()]
InterfaceNames = Annotated[tuple[InterfaceName, ...], OneOrMore()]
PortRange = Annotated[
    int | str,
    BeforeValidator(read_ports),
    Field(description="a port (443) or an inclusive range (8000-8999)"),
]
PortRanges = Annotated[tuple[PortRange, ...], OneOrMore()]
#: An entry of a rule set: a CIDR, an address, or a domain pattern.
Entry = Annotated[IPv4Network | IPv6Network | str, BeforeValidator(read_entry)]
EntryList = Annotated[tuple[Entry, ...], OneOrMore()]
Hours = Annotated[float, Field(ge=0.01, le=24 * 365)]
Seconds = Annotated[float, Field(gt=0, le=7 * 86400)]


class Model(BaseModel):
    """Base: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
