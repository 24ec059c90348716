"""The flow that is asked about, as a person writes it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TypeVar, get_args

from pydantic_core import PydanticCustomError

from gateway.config.assertions import (
    SOMEWHERE,
    SOURCE_PORT,
    Target,
    facts_of_device,
    minutes_of,
    target,
)
from gateway.config.domains import canonical_name
from gateway.config.findings import did_you_mean
from gateway.config.rule_values import read_device
from gateway.config.rules import Sniffed
from gateway.config.schema import Config
from gateway.errors import GatewayError
from gateway.flow import Endpoint, Protocol

_Value = TypeVar("_Value")

_CLIENT = re.compile(
    r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^\s/:\[\]]+))(?::(?P<port>\d{1,5}))?", re.ASCII
)


class QuestionError(GatewayError):
    """What was asked has no meaning."""


@dataclass(frozen=True, slots=True)
class Question:
    """One flow.

    ``destination`` is an address; ``assumed`` says that it stands for one that is not known.
    ``name`` and ``sniffed`` are what the first bytes would tell, empty for nothing.
    ``interface`` empty: where the kernel routes answers to. ``at``: minute of the week; None
    for now.
    """

    protocol: Protocol
    source: Endpoint
    destination: Endpoint
    name: str = ""
    sniffed: str = ""
    interface: str = ""
    device: str = ""
    at: int | None = None
    assumed: bool = False


def read_source(text: str) -> Endpoint:
    """``ADDRESS`` or ``ADDRESS:PORT``. Raises ``QuestionError``."""
    matched = _CLIENT.fullmatch(text)
    host = (matched["v6"] or matched["host"]) if matched else text
    if not _is_address(host):
        raise QuestionError(
            f"{text!r} is not the address of a client",
            "write 192.168.20.5, fd00:20::5 or [fd00:20::5]:40000",
        )
    port = matched["port"] if matched else None
    return Endpoint(str(ip_address(host)), _port(port) if port else SOURCE_PORT)


def _port(digits: str) -> int:
    if not 1 <= int(digits) <= 65535:
        raise QuestionError(f"{digits} is not a port", "a port is between 1 and 65535")
    return int(digits)


def read_target(text: str) -> Target:
    """``HOST:PORT/PROTOCOL``, as assertions write it. Raises ``QuestionError``."""
    return _as_in_assertions(target, text)


def read_moment(text: str, today: int) -> int:
    """The minute of the week that ``22:30`` (on weekday ``today``) or ``fri 22:30`` means.

    Raises ``QuestionError``.
    """
    minutes = _as_in_assertions(minutes_of, text)
    return minutes[0] if len(minutes) == 1 else minutes[today]


def _as_in_assertions(read: Callable[[object], _Value], text: str) -> _Value:
    """What a configuration would read; a person who asks meets the same words."""
    try:
        return read(text)
    except PydanticCustomError as error:
        cure = (error.context or {}).get("cure", "")
        raise QuestionError(f"{text!r}: {error.message()}", cure) from None


def ask(
    source: str,
    where: str,
    *,
    address: str = "",
    name: str = "",
    sniffed: str = "",
    interface: str = "",
    device: str = "",
    at: int | None = None,
) -> Question:
    """The question that a person's words mean. Raises ``QuestionError``.

    ``address`` is that of a name in ``where``; ``name`` is what the first bytes of a flow to
    an address would tell.
    """
    client = read_source(source)
    protocol, destination, by_name = read_target(where)
    if protocol is Protocol.ICMP:
        client = client._replace(port=0)
    host = destination.host
    assumed = False
    if by_name:
        name = host
        host, assumed = address or SOMEWHERE[6 if ":" in client.host else 4], not address
        if not _is_address(host):
            raise QuestionError(f"{host!r} is not an address", "write 203.0.113.5 or 2001:db8::5")
        host = str(ip_address(host))
    elif address:
        raise QuestionError("the target has an address already", "leave out --address")
    elif name:
        known = canonical_name(name)
        if known is None:
            raise QuestionError(f"{name!r} is not a host name", "write www.example.com")
        name = known
    if sniffed and sniffed not in get_args(Sniffed):
        cure = did_you_mean(sniffed, get_args(Sniffed), "protocols")
        raise QuestionError(f"{sniffed!r} is not a protocol that first bytes tell", cure)
    if (":" in host) != (":" in client.host):
        raise QuestionError(
            f"{client.host} cannot reach {host}: one is IPv4, the other IPv6",
            "give both of one family",
        )
    place = Endpoint(host, destination.port)
    return Question(protocol, client, place, name, sniffed, interface, device, at, assumed)


def _is_address(text: str) -> bool:
    """Whether it is one without a zone, which a packet does not have."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def device_facts(config: Config, device: str) -> tuple[str | None, str | None]:
    """MAC address and host name of a device as rules write it. Raises ``QuestionError``."""
    if not device:
        return None, None
    written = _as_in_assertions(read_device, device)
    mac, hostname = facts_of_device(config.lan.devices, written)
    if mac is not None and ":" not in mac:
        raise QuestionError(
            f"there is no device {device!r}", "write a MAC address, dhcp:NAME, or a device's name"
        )
    return mac, hostname
