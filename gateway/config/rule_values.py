"""Single values of rules: times, devices, code points, marks; as ``config.scalars``."""

from __future__ import annotations

import re
from zoneinfo import ZoneInfo

from gateway.config.scalars import HOST_NAME, NAME_PATTERN, refuse
from gateway.marks import Mark

_TIME_CURE = "write 22:00-07:00 (to before 07:00, over midnight) or 00:00-24:00"
_TIME_RANGE = re.compile(r"(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)", re.ASCII)
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY = 24 * 60


def read_time(value: object) -> str:
    """Hours of a day, as they were written. Raises ``PydanticCustomError``."""
    time_range(value)
    return str(value)


def time_range(value: object) -> tuple[int, int]:
    """``22:00-07:00`` as minutes since midnight, the end behind the last: (1320, 1860).

    An end that is not after the beginning is of the next day. Raises ``PydanticCustomError``.
    """
    matched = _TIME_RANGE.fullmatch(value.strip()) if isinstance(value, str) else None
    if matched is None:
        raise refuse("not a range of times", _TIME_CURE)
    hour, minute, last_hour, last_minute = map(int, matched.groups())
    first, behind = 60 * hour + minute, 60 * last_hour + last_minute
    if minute > 59 or last_minute > 59 or first >= DAY or behind > DAY:
        raise refuse("a day has 24 hours, and an hour 60 minutes", _TIME_CURE)
    if first == behind:
        raise refuse("an empty range", "write 00:00-24:00 for the whole day")
    return first, behind if behind > first else behind + DAY


def read_weekdays(value: object) -> str:
    """A day or a range of days, as it was written. Raises ``PydanticCustomError``."""
    weekday_range(value)
    return str(value)


def weekday_range(value: object) -> tuple[int, ...]:
    """The days of ``sat``, ``mon-fri`` or ``fri-mon``; Monday is 0.

    Raises ``PydanticCustomError``.
    """
    text = value.lower() if isinstance(value, str) else ""
    ends = [day.strip() for day in text.split("-")]
    if len(ends) > 2 or not all(day in WEEKDAYS for day in ends):
        raise refuse("not a weekday", f"write one of {', '.join(WEEKDAYS)}, or mon-fri")
    first, last = WEEKDAYS.index(ends[0]), WEEKDAYS.index(ends[-1])
    return tuple((first + day) % 7 for day in range((last - first) % 7 + 1))


def read_time_zone(value: object) -> str:
    """The name of a time zone of the IANA database. Raises ``PydanticCustomError``."""
    text = value if isinstance(value, str) else ""
    try:
        ZoneInfo(text)
    except (KeyError, ValueError, OSError):
        raise refuse(
            "unknown time zone", "write a name such as Europe/Berlin (timedatectl list-timezones)"
        ) from None
    return text


_MAC = re.compile(r"[0-9a-f]{2}([:-][0-9a-f]{2}){5}")
#: Before a host name in ``device``: as the device's DHCP lease has it.
DHCP_PREFIX = "dhcp:"


def read_mac(value: object) -> str:
    """A MAC address, in lower case with colons. Raises ``PydanticCustomError``."""
    text = value.lower() if isinstance(value, str) else ""
    if not _MAC.fullmatch(text):
        raise refuse("not a MAC address", "write 02:00:5e:00:53:01; quotes keep it text")
    return text.replace("-", ":")


def read_hostname(value: object) -> str:
    """A host's own name, as DHCP clients send it: one label or more, in lower case.

    Raises ``PydanticCustomError``.
    """
    text = value.lower().removesuffix(".") if isinstance(value, str) else ""
    if not HOST_NAME.fullmatch(text):
        raise refuse("not a host name", "write the name that the DHCP lease has")
    return text


def read_device(value: object) -> str:
    """A MAC address, a device's name, or ``dhcp:`` with a host name.

    Raises ``PydanticCustomError``.
    """
    if isinstance(value, str):
        if value.startswith(DHCP_PREFIX):
            return DHCP_PREFIX + read_hostname(value.removeprefix(DHCP_PREFIX))
        if re.match(NAME_PATTERN, value) and not _MAC.fullmatch(value.lower()):
            return value
    return read_mac(value)


#: Code points by name: RFC 2474 section 4.2.2, RFC 2597 section 6, RFC 3246, RFC 5865, RFC 8622.
DSCP_NAMES = {
    **{f"cs{number}": 8 * number for number in range(8)},
    **{f"af{x}{y}": 8 * x + 2 * y for x in range(1, 5) for y in range(1, 4)},
    "ef": 46,
    "va": 44,
    "le": 1,
}


def read_dscp(value: object) -> int:
    """A code point by number or name. Raises ``PydanticCustomError``."""
    number = DSCP_NAMES.get(value.lower()) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 63:
        raise refuse("not a DSCP", "write 0 to 63, or a name such as ef, cs1, af41")
    return number


def read_country(value: object) -> str:
    """A country's code, in upper case. Raises ``PydanticCustomError``."""
    text = value.upper() if isinstance(value, str) else ""
    if not re.fullmatch(r"[A-Z]{2}", text):
        cure = "write two letters of ISO 3166 such as DE; NO in quotes"
        raise refuse("not a country's code", cure)
    return text


def read_asn(value: object) -> int:
    """The number of an autonomous system, ``64500`` or ``AS64500``.

    Raises ``PydanticCustomError``.
    """
    if isinstance(value, str) and re.fullmatch(r"(AS)?[0-9]{1,10}", value.upper(), re.ASCII):
        value = int(value.upper().removeprefix("AS"))
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 32:
        raise refuse("not an autonomous system", "write its number: 64500 or AS64500")
    return value


_MARK = re.compile(r"(0x[0-9a-f]{1,8}|[0-9]{1,10})(?:/(0x[0-9a-f]{1,8}|[0-9]{1,10}))?")


def read_mark(value: object) -> str:
    """A mark with its mask, as ``mark_and_mask`` reads it. Raises ``PydanticCustomError``."""
    mark_and_mask(value)
    return str(value)


def mark_and_mask(value: object) -> Mark:
    """``0x10/0xff``; without a mask, the bits of the value. Raises ``PydanticCustomError``."""
    text = "" if isinstance(value, bool) else str(value).lower()
    matched = _MARK.fullmatch(text)
    if matched is None:
        raise refuse("not a mark", "write 0x10 or 0x10/0xff")
    number = int(matched[1], 0)
    mask = int(matched[2], 0) if matched[2] else number
    if not 0 < mask < 1 << 32 or number & ~mask:
        raise refuse("a mark has 32 bits, none of them outside its mask", "write 0x10 or 0x10/0xff")
    return Mark(number, mask)
