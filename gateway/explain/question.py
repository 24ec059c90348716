"""The flow that is asked about, as a person writes it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from gateway.config.domains import canonical_name
from gateway.config.rule_values import DAY, DHCP_PREFIX, weekday_range
from gateway.config.schema import Config
from gateway.errors import GatewayError
from gateway.flow import Endpoint, Protocol

#: Source port of a flow that is asked about without one: among those that clients use (RFC 6056).
_SOURCE_PORT: Final = 50000
#: In place of an address that is not known: for documentation (RFC 5737, RFC 3849).
_SOMEWHERE: Final = {4: "192.0.2.1", 6: "2001:db8::1"}

_ENDPOINT = re.compile(
    r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^\s/:\[\]]+))(?::(?P<port>\d{1,5}))?", re.ASCII
)
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}", re.ASCII)
_MOMENT = re.compile(r"(?:(?P<day>[a-z]{3})\s+)?(?P<hour>\d{1,2}):(?P<minute>\d\d)", re.ASCII)
_TARGET_CURE: Final = (
    "write www.example:443, 203.0.113.5:53/udp, [2001:db8::1]:443 or 203.0.113.5/icmp"
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
    matched = _ENDPOINT.fullmatch(text)
    host = (matched["v6"] or matched["host"]) if matched else text
    if not _is_address(host):
        raise QuestionError(
            f"{text!r} is not the address of a client",
            "write 192.168.20.5, fd00:20::5 or [fd00:20::5]:40000",
        )
    port = matched["port"] if matched else None
    return Endpoint(str(ip_address(host)), _port(port) if port else _SOURCE_PORT)


def read_target(text: str) -> tuple[Protocol, Endpoint]:
    """``HOST:PORT/PROTOCOL``, TCP where none is said; the host is an address or a name.

    Raises ``QuestionError``.
    """
    where, _, word = text.strip().partition("/")
    matched = _ENDPOINT.fullmatch(where)
    if matched is None or word not in ("", *Protocol):
        raise QuestionError(f"{text!r} is not a target", _TARGET_CURE)
    protocol = Protocol(word or "tcp")
    if (matched["port"] is None) != (protocol is Protocol.ICMP):
        raise QuestionError("TCP and UDP have ports, and ICMP has none", _TARGET_CURE)
    port = _port(matched["port"]) if matched["port"] else 0
    host = matched["v6"] or matched["host"]
    if _is_address(host):
        return protocol, Endpoint(str(ip_address(host)), port)
    name = None if matched["v6"] else canonical_name(host)
    if name is None:
        raise QuestionError(f"{host!r} is neither an address nor a host name", _TARGET_CURE)
    return protocol, Endpoint(name, port)


def _port(digits: str) -> int:
    if not 1 <= int(digits) <= 65535:
        raise QuestionError(f"{digits} is not a port", "a port is between 1 and 65535")
    return int(digits)


def read_moment(text: str, today: int) -> int:
    """The minute of the week that ``22:30`` (on weekday ``today``) or ``fri 22:30`` means.

    Raises ``QuestionError``.
    """
    matched = _MOMENT.fullmatch(text.lower().strip())
    wrong = QuestionError(f"{text!r} is not a time", "write 22:30 or fri 22:30")
    if matched is None or int(matched["hour"]) > 23 or int(matched["minute"]) > 59:
        raise wrong
    try:
        day = weekday_range(matched["day"])[0] if matched["day"] else today
    except ValueError:
        raise wrong from None
    return day * DAY + int(matched["hour"]) * 60 + int(matched["minute"])


def ask(
    source: str,
    target: str,
    *,
    address: str = "",
    name: str = "",
    sniffed: str = "",
    interface: str = "",
    device: str = "",
    at: int | None = None,
) -> Question:
    """The question that a person's words mean. Raises ``QuestionError``.

    ``address`` is that of a name in ``target``; ``name`` is what the first bytes of a flow to
    an address would tell.
    """
    client = read_source(source)
    protocol, destination = read_target(target)
    if protocol is Protocol.ICMP:
        client = client._replace(port=0)
    host = destination.host
    assumed = False
    if not _is_address(host):
        name = host
        host, assumed = address or _SOMEWHERE[6 if ":" in client.host else 4], not address
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
    known = config.lan.devices.get(device)
    if known is not None:
        return next(iter(known.mac), None), next(iter(known.hostname), None)
    if device.startswith(DHCP_PREFIX):
        return None, device.removeprefix(DHCP_PREFIX).lower()
    if device and not _MAC.fullmatch(device.lower()):
        raise QuestionError(
            f"there is no device {device!r}", "write a MAC address, dhcp:NAME, or a device's name"
        )
    return device.lower() or None, None
