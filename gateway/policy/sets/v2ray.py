"""``geosite.dat`` and ``geoip.dat`` of v2ray: many lists in one file, each with a name.

The messages are those of v2ray's ``app/router/config.proto``, described here in code.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from gateway.config.domains import DomainKind
from gateway.errors import GatewayError
from gateway.policy.sets.entries import Entries

_FIELD = descriptor_pb2.FieldDescriptorProto
#: Message, then each field's name, number and type; a type that is a message's name repeats.
_MESSAGES: Final[dict[str, tuple[tuple[str, int, int | str], ...]]] = {
    "Attribute": (("key", 1, _FIELD.TYPE_STRING),),
    "Domain": (
        ("type", 1, _FIELD.TYPE_INT32),
        ("value", 2, _FIELD.TYPE_STRING),
        ("attribute", 3, "Attribute"),
    ),
    "GeoSite": (("code", 1, _FIELD.TYPE_STRING), ("domain", 2, "Domain")),
    "GeoSiteList": (("entry", 1, "GeoSite"),),
    "Cidr": (("ip", 1, _FIELD.TYPE_BYTES), ("prefix", 2, _FIELD.TYPE_UINT32)),
    "GeoIp": (
        ("code", 1, _FIELD.TYPE_STRING),
        ("cidr", 2, "Cidr"),
        ("inverse", 3, _FIELD.TYPE_BOOL),
    ),
    "GeoIpList": (("entry", 1, "GeoIp"),),
}
_PACKAGE: Final = "gateway.v2ray"
_PLAIN, _REGEX, _ROOT, _FULL = range(4)


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="gateway/v2ray.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        described = file.message_type.add(name=name)
        for field, number, kind in fields:
            if isinstance(kind, str):
                described.field.add(
                    name=field,
                    number=number,
                    label=_FIELD.LABEL_REPEATED,
                    type=_FIELD.TYPE_MESSAGE,
                    type_name=f".{_PACKAGE}.{kind}",
                )
            else:
                label = _FIELD.LABEL_OPTIONAL
                described.field.add(name=field, number=number, label=label, type=kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


CLASSES: Final = _classes()


def read_geosite(data: bytes, select: str, entries: Entries) -> None:
    """The list ``NAME`` or ``NAME@attribute`` (several: all of them; ``@!``: without it).

    Raises ``GatewayError`` where there is no such list, with those that there are.
    """
    name, *attributes = select.removeprefix("geosite:").split("@")
    for domain in _entry("GeoSiteList", data, name).domain:
        has = {each.key for each in domain.attribute}
        if all((a[1:] not in has) if a[:1] == "!" else (a in has) for a in attributes):
            _domain(entries, domain.type, domain.value)


def _domain(entries: Entries, kind: int, value: str) -> None:
    if kind == _PLAIN:
        entries.keyword(value)
    elif kind == _REGEX:
        entries.regex(value)
    elif kind == _ROOT:
        entries.name(DomainKind.SUFFIX, value)
    elif kind == _FULL:
        entries.name(DomainKind.EXACT, value)
    else:
        entries.skip(f"domain of type {kind}", 0, value)


def read_geoip(data: bytes, select: str, entries: Entries) -> None:
    """The list of that name (a country's code, most often). Raises as ``read_geosite``."""
    found = _entry("GeoIpList", data, select.removeprefix("geoip:"))
    if found.inverse:
        raise GatewayError(
            f"the list {found.code} says which addresses are not meant",
            "such lists are not supported: take the one that names them",
        )
    for cidr in found.cidr:
        size = len(cidr.ip)
        if size not in (4, 16) or cidr.prefix > size * 8:
            entries.skip("not a prefix", 0, cidr.ip.hex())
            continue
        if size == 4:
            address = ".".join(map(str, cidr.ip))
        else:
            address = ":".join(cidr.ip.hex()[at : at + 4] for at in range(0, 32, 4))
        entries.network(f"{address}/{cidr.prefix}")


def _parsed(kind: str, data: bytes) -> Any:
    try:
        return CLASSES[kind].FromString(data)
    except message.DecodeError as error:
        raise GatewayError("not a v2ray data file, or a damaged one", "get it anew") from error


def _entry(kind: str, data: bytes, name: str) -> Any:
    parsed = _parsed(kind, data)
    for entry in parsed.entry:
        if entry.code.lower() == name.lower():
            return entry
    known = sorted(entry.code.lower() for entry in parsed.entry)
    shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    what = f"no list {name!r}" if name else "many lists: which one is not said"
    raise GatewayError(f"has {what}", f"`select:` one of {shown}" if known else "it is empty")
