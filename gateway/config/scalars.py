"""Single values of the configuration: networks, addresses and port ranges, read from text.

Each reader says what is wrong and how to write it; the schema calls them before
pydantic's own validation, so that a union never answers with one error per member.
"""

from __future__ import annotations

import re
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)

from pydantic_core import PydanticCustomError

from gateway.config.domains import domain_pattern

#: Nothing that could be mistaken for an option, a list or a rule of another tool.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$"
#: IFNAMSIZ of <linux/if.h> is 16 with the final NUL. The kernel allows nearly every character;
#: quotes, ``+`` and ``*`` would mean something to nft and iptables.
INTERFACE_PATTERN = r"^[A-Za-z0-9_.-]{1,15}$"
#: Below the root of the one hierarchy (cgroups(7)), without what nft would read otherwise.
CGROUP_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.@:-]*(/[A-Za-z0-9_][A-Za-z0-9_.@:-]*)*$"
#: TCP_CA_NAME_MAX of <linux/tcp.h> is 16, with the zero at the end.
CONGESTION_PATTERN = r"^[a-z0-9_-]{1,15}$"
URL_PATTERN = r"^https?://[^\s/]+(/\S*)?$"
#: useradd(8); the kernel keeps the last number for "nobody was asked" (``INVALID_UID``).
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", re.ASCII)
_INVALID_UID = 0xFFFF_FFFF

#: A label of a host name (RFC 1123 section 2.1), underscore tolerated as resolvers do.
HOST_NAME = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
    r"(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?"
)

_MAPPED = IPv6Network("::ffff:0:0/96")
_ADDRESS_LIKE = re.compile(r"^[0-9.]+$|[:/]")
_PORT_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


def refuse(message: str, cure: str) -> PydanticCustomError:
    """An error whose text stands as it is (pydantic would fill in ``{}``)."""
    return PydanticCustomError("value", "{message}", {"message": message, "cure": cure})


def read_network(value: object) -> IPv4Network | IPv6Network:
    """A CIDR, or an address as a network of one.

    Raises ``PydanticCustomError`` with the cure in its context. Only text is read:
    ``ipaddress`` would take the number 5 for 0.0.0.5.
    """
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    text = value if isinstance(value, str) else ""
    try:
        network = ip_network(text)
    except ValueError:
        raise refuse(*_explain_network(text)) from None
    if "%" in text:
        raise refuse("a network has no zone", f"leave `%{text.partition('%')[2]}` out")
    if isinstance(network, IPv6Network) and network.prefixlen > _MAPPED.prefixlen:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            inner = f"{mapped}/{network.prefixlen - _MAPPED.prefixlen}"
            raise refuse("an IPv4-mapped network never matches", f"write {inner}")
    return network


def _explain_network(text: str) -> tuple[str, str]:
    """Why a text is no network, and what may have been meant."""
    address, slash, length = text.partition("/")
    try:
        meant = ip_interface(text)
    except ValueError:
        pass
    else:
        return "has host bits set", f"did you mean {meant.network}?"
    if slash and length.isdecimal() and is_address(address):
        most = 128 if ":" in address else 32
        return f"a prefix is no longer than /{most}", f"write /0 to /{most}"
    return (
        "not a CIDR or an address",
        "write an address (192.168.1.5, fd00::5) or a CIDR (192.168.1.0/24, fd00::/64)",
    )


def is_address(text: str) -> bool:
    """Whether it is an IPv4 or IPv6 address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def read_address(value: object) -> IPv4Address | IPv6Address:
    """An address without a zone. Raises ``PydanticCustomError`` as ``read_network`` does."""
    if isinstance(value, IPv4Address | IPv6Address):
        return value
    if isinstance(value, str) and "%" not in value and is_address(value):
        return ip_address(value)
    raise refuse("not an address", "write an address such as 192.168.1.5 or fd00::5")


def read_destination(value: object) -> IPv4Network | IPv6Network | str:
    """A network, or a rule set's name (whether it exists is checked later).

    Raises ``PydanticCustomError``. What looks like an address must be one: ``10.0.0.300``
    is a mistyped address and not the name of a rule set.
    """
    if isinstance(value, str) and not _ADDRESS_LIKE.search(value):
        if re.match(NAME_PATTERN, value):
            return value
        raise refuse(
            "not a CIDR, an address or a rule set's name",
            "write a CIDR (192.168.1.0/24) or the name of a rule set (private)",
        )
    return read_network(value)


def read_domain(value: object) -> str:
    """A pattern of names (``config.domains``), canonical. Raises ``PydanticCustomError``."""
    try:
        return str(domain_pattern(value.strip() if isinstance(value, str) else ""))
    except ValueError as error:
        raise refuse(
            str(error),
            "write a.example, +.a.example (with all below it), *.a.example, keyword:a or regex:^a",
        ) from None


def read_entry(value: object) -> IPv4Network | IPv6Network | str:
    """An entry of a rule set: a network, or a domain pattern (``config.domains``), canonical.

    Raises ``PydanticCustomError``.
    """
    if not isinstance(value, str) or (
        _ADDRESS_LIKE.search(value) and not value.startswith(("keyword:", "regex:"))
    ):
        return read_network(value)
    try:
        return str(domain_pattern(value))
    except ValueError as error:
        raise refuse(
            str(error),
            "write a CIDR (192.168.1.0/24), a name (a.example), a name with all below it"
            " (+.a.example), keyword:word or regex:pattern",
        ) from None


def read_ports(value: object) -> int | str:
    """A port or a range, as it was written. Raises ``PydanticCustomError``."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise refuse("not a port or a range of ports", "write 443 or 8000-8999")
    port_range(value)
    return value


def port_range(value: int | str) -> tuple[int, int]:
    """The inclusive bounds of ``443`` or ``8000-8999``. Raises ``PydanticCustomError``."""
    matched = _PORT_RANGE.fullmatch(str(value).replace(" ", ""))
    if matched is None:
        raise refuse("not a port or a range of ports", "write 443 or 8000-8999")
    first = int(matched[1])
    last = int(matched[2] or first)
    if not (1 <= first <= 65535 and 1 <= last <= 65535):
        raise refuse("a port is between 1 and 65535", "write 443 or 8000-8999")
    if first > last:
        raise refuse("the range is upside down", f"did you mean {last}-{first}?")
    return first, last


def read_user(value: object) -> int | str:
    """A user's number or name, or a group's."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _INVALID_UID:
        return value
    if isinstance(value, str) and _USER.fullmatch(value):
        return value
    raise refuse(
        "not a user or group of this machine", "write a name or a number, such as `uid: proxy`"
    )
