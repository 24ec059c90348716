"""The flow of ``gateway explain``, as people write it."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.schema import Config
from gateway.errors import GatewayError
from gateway.explain.question import ask, device_facts, read_moment, read_source, read_target
from gateway.flow import Endpoint, Protocol


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.168.20.5", Endpoint("192.168.20.5", 50000)),
        ("192.168.20.5:4000", Endpoint("192.168.20.5", 4000)),
        ("FD00:20:0::5", Endpoint("fd00:20::5", 50000)),
        ("[fd00:20::5]:4000", Endpoint("fd00:20::5", 4000)),
    ],
)
def test_sources(text: str, expected: Endpoint) -> None:
    assert read_source(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("WWW.example.:443", (Protocol.TCP, Endpoint("www.example", 443))),
        ("203.0.113.5:53/udp", (Protocol.UDP, Endpoint("203.0.113.5", 53))),
        ("[2001:db8:0::1]:443", (Protocol.TCP, Endpoint("2001:db8::1", 443))),
        ("203.0.113.5/icmp", (Protocol.ICMP, Endpoint("203.0.113.5", 0))),
    ],
)
def test_targets(text: str, expected: tuple[Protocol, Endpoint]) -> None:
    assert read_target(text)[:2] == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a.example",
        "a.example:0",
        "a.example:70000",
        "a.example:1/sctp",
        "1.2.3.4:5/icmp",
        "10.0.0.300:80",
        "[a.example]:80",
        "a..b:80",
        "fe80::1%eth0:80",
        "[::1]",
    ],
)
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(GatewayError) as caught:
        read_target(text)
    assert caught.value.hint


def test_moments() -> None:
    assert read_moment("22:30", today=2) == (2 * 24 + 22) * 60 + 30
    assert read_moment("Fri 7:05", today=2) == (4 * 24 + 7) * 60 + 5
    for wrong in ("24:00", "22:60", "foo 22:30", "2230", "mon-fri 22:30"):
        with pytest.raises(GatewayError, match=r"not a (time|weekday)"):
            read_moment(wrong, today=0)


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=10))
def test_any_text_is_read_or_refused(source: str, target: str, moment: str) -> None:
    for read in (read_source, read_target, lambda text: read_moment(text, 0)):
        for text in (source, target, moment):
            with suppress(GatewayError):
                read(text)


def test_a_name_is_what_the_first_bytes_tell() -> None:
    asked = ask("192.168.20.5", "www.example:443")
    assert (asked.name, asked.destination.host, asked.assumed) == ("www.example", "192.0.2.1", True)
    asked = ask("fd00::5", "www.example:443", address="2001:db8:0::9")
    assert (asked.destination.host, asked.assumed) == ("2001:db8::9", False)
    asked = ask("192.168.20.5", "203.0.113.5:443", name="WWW.example")
    assert (asked.name, asked.assumed) == ("www.example", False)
    assert ask("192.168.20.5", "203.0.113.5:443", sniffed="tls").sniffed == "tls"


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("[2001:db8::1]:443", {}),
        ("www.example:443", {"address": "2001:db8::1"}),
        ("www.example:443", {"address": "nowhere"}),
        ("203.0.113.5:443", {"address": "203.0.113.6"}),
        ("203.0.113.5:443", {"name": "no name"}),
        ("203.0.113.5:443", {"sniffed": "tsl"}),
    ],
)
def test_what_does_not_go_together(target: str, options: dict[str, str]) -> None:
    with pytest.raises(GatewayError) as caught:
        ask("192.168.20.5", target, **options)  # type: ignore[arg-type]
    assert caught.value.hint


def test_devices() -> None:
    config = Config.model_validate(
        {
            "lan": {
                "interfaces": "eth1",
                "devices": {"tv": {"mac": "02:00:00:00:00:01", "hostname": "telly"}},
            },
            "rules": [{"to": "direct"}],
        }
    )
    assert device_facts(config, "tv") == ("02:00:00:00:00:01", "telly")
    assert device_facts(config, "dhcp:Phone") == (None, "phone")
    assert device_facts(config, "02:00:00:00:00:0A") == ("02:00:00:00:00:0a", None)
    assert device_facts(config, "") == (None, None)
    with pytest.raises(GatewayError, match="no device"):
        device_facts(config, "radio")
