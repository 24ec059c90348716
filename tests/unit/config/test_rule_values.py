"""Values of rules: what is read, what is refused, and that nothing else is ever raised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from gateway.config import rule_values
from gateway.config.rule_values import (
    mark_and_mask,
    read_asn,
    read_country,
    read_device,
    read_dscp,
    read_mac,
    read_time_zone,
    time_range,
    weekday_range,
)
from gateway.marks import Mark


@pytest.mark.parametrize(
    ("read", "written", "value"),
    [
        (time_range, "22:00-07:00", (1320, 1860)),
        (time_range, "0:00 - 24:00", (0, 1440)),
        (time_range, "09:00-09:01", (540, 541)),
        (weekday_range, "Mon", (0,)),
        (weekday_range, "fri-mon", (4, 5, 6, 0)),
        (read_time_zone, "Europe/Berlin", "Europe/Berlin"),
        (read_mac, "02-00-5E-00-53-01", "02:00:5e:00:53:01"),
        (read_device, "tv", "tv"),
        (read_device, "02:00:5e:00:53:01", "02:00:5e:00:53:01"),
        (read_device, "dhcp:Johns-Phone", "dhcp:johns-phone"),
        (read_dscp, "EF", 46),
        (read_dscp, "af41", 34),
        (read_dscp, 0, 0),
        (read_country, "de", "DE"),
        (read_asn, "AS64500", 64500),
        (read_asn, 4294967295, 4294967295),
        (mark_and_mask, 16, Mark(16, 16)),
        (mark_and_mask, "0x10/0xFF", Mark(16, 255)),
        (mark_and_mask, "0/0xff", Mark(0, 255)),
    ],
)
def test_values(read: Callable[[Any], object], written: object, value: object) -> None:
    assert read(written) == value


@pytest.mark.parametrize(
    ("read", "written"),
    [
        *((time_range, bad) for bad in ("22:00", "24:00-01:00", "1:60-2:00", "7:00-7:00", 7)),
        *((weekday_range, bad) for bad in ("monday", "mon-", "mon-tue-wed", "", 1)),
        *((read_time_zone, bad) for bad in ("Berlin", "", "../etc/passwd", "/etc/localtime", 1)),
        *((read_mac, bad) for bad in ("02:00:5e:00:53", "02:00:5e:00:53:0g", 2)),
        *((read_device, bad) for bad in ("a b", "dhcp:", "dhcp:a b", "02:00", None)),
        *((read_dscp, bad) for bad in (64, -1, "x", True, 1.5)),
        *((read_country, bad) for bad in ("DEU", "D1", False, "")),
        *((read_asn, bad) for bad in (0, 1 << 32, "AS", "64500x", True)),
        *((mark_and_mask, bad) for bad in (0, "0x10/0x1", "0x1ffffffff", -1, True, "x", "1/0")),
    ],
)
def test_bad_values(read: Callable[[Any], object], written: object) -> None:
    with pytest.raises(PydanticCustomError) as raised:
        read(written)
    assert (raised.value.context or {})["cure"]


@given(
    st.sampled_from([getattr(rule_values, name) for name in dir(rule_values) if "read_" in name]),
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.lists(st.none()),
)
def test_any_value(read: Callable[[Any], object], written: object) -> None:
    try:
        value = read(written)
    except PydanticCustomError:
        return
    assert read(value) == value
