"""Assertions: which flows they mean, and what is said where one goes elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from gateway.config.assertions import minutes_of, read_moment, read_origin, read_target, target
from gateway.config.load import Loaded, parse
from gateway.errors import ConfigError
from gateway.flow import Endpoint, Protocol
from gateway.policy.assertions import failures, require_assertions
from gateway.policy.compile import compile_policy

RULES = """
lan:
  interfaces: [eth1]
  subnets: {kids: [192.168.20.0/24, "fd00:20::/64"], one: 192.168.30.7}
  devices: {tv: {mac: "02:00:5e:00:53:01", hostname: tv-set}}
outbounds: {home: {type: socks5, server: 203.0.113.5}}
rules:
  - {device: tv, to: reject-drop}
  - {subnet: kids, domain: +.video.example, time: "22:00-07:00", to: reject}
  - {sniffed: bittorrent, to: reject}
  - {destination: "198.51.100.0/24", interface: eth1, protocol: udp, port: 53, to: direct}
  - {ip_version: 6, weekday: sun, to: direct}
  - {to: home}
assertions:
"""


def loaded(*assertions: str) -> Loaded:
    text = RULES + "".join(f"  - {{{each}}}\n" for each in assertions)
    return parse(text, "gateway.yaml", resolve_secret=lambda *_: "")


@pytest.mark.parametrize(
    "assertion",
    [
        'from: kids, to: "www.video.example:443", at: "23:00", expect: reject',
        'from: kids, to: "www.video.example:443", at: "sun 06:59", expect: reject',
        'from: 192.168.20.9, to: "www.video.example:443", at: "12:00", expect: home',
        'from: one, to: "www.video.example:443", expect: home',
        'from: one, device: tv, to: "203.0.113.9:443", expect: reject',
        'from: one, device: "02:00:5e:00:53:01", to: "203.0.113.9:443", expect: reject-drop',
        'from: one, device: "dhcp:TV-set", to: "203.0.113.9:443", expect: reject',
        'from: one, to: "a.example:443", sniffed: bittorrent, expect: reject',
        'from: one, to: "198.51.100.1:53/udp", expect: direct',
        'from: one, to: "a.example:53/udp", address: 198.51.100.1, expect: direct',
        'from: one, interface: eth2, to: "198.51.100.1:53/udp", expect: home',
        'from: "fd00::1", to: "[2001:db8::1]:443", at: "sun 12:00", expect: direct',
        "from: one, to: 198.51.100.1/icmp, expect: home",
    ],
)
def test_what_holds(assertion: str) -> None:
    found = loaded(assertion)
    assert list(failures(found.config, compile_policy(found.config, {}))) == []


@pytest.mark.parametrize(
    ("assertion", "message", "tried"),
    [
        (
            'from: kids, to: "www.video.example:443", expect: home',
            "from 192.168.20.1 to www.video.example at mon 00:00 goes to reject, by rules[1]",
            "rules[0]: device is unknown; rules[1]: matched",
        ),
        (
            # IPv4 goes home every day, IPv6 not on Sunday.
            'from: kids, to: "a.example:443", at: "12:00", expect: home',
            "from fd00:20::1 to a.example at sun 12:00 goes to direct, by rules[4]",
            "rules[1]: time is sun 12:00; rules[2]: sniffed is none; rules[3]: destination is",
        ),
        (
            'from: one, to: "203.0.113.9:443", expect: reject',
            "from 192.168.30.7 to 203.0.113.9 at mon 00:00 goes to home, by rules[5] -> home",
            "rules[4]: destination is 203.0.113.9; rules[5]: matched",
        ),
    ],
)
def test_what_fails(assertion: str, message: str, tried: str) -> None:
    found = loaded("from: one, to: 'a.example:1', expect: home", assertion)
    with pytest.raises(ConfigError) as raised:
        require_assertions(found, compile_policy(found.config, {}))
    (problem,) = raised.value.problems
    assert (problem.path, problem.line) == ("assertions[1].expect", 16)
    assert message in problem.message
    assert tried in problem.cure


@pytest.mark.parametrize(
    ("assertion", "path", "message"),
    [
        ("from: kid, to: 'a.example:1', expect: home", "from", "unknown subnet"),
        ("from: one, to: 'a.example:1', expect: hom", "expect", "unknown outbound"),
        ("from: one, device: TV, to: 'a.example:1', expect: home", "device", "unknown device"),
        ("from: one, to: a.example, expect: home", "to", "have ports"),
        ("from: one, to: 'a.example:1', at: noon, expect: home", "at", "not a time"),
        ("from: one, to: 'a.example:1'", "expect", "is missing"),
    ],
)
def test_what_is_no_assertion(assertion: str, path: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(assertion)
    (problem,) = raised.value.problems
    assert problem.path == f"assertions[0].{path}"
    assert message in problem.message


@pytest.mark.parametrize(
    ("written", "protocol", "end"),
    [
        ("www.Example.:443", "tcp", Endpoint("www.example", 443)),
        ("[2001:DB8::1]:53/udp", "udp", Endpoint("2001:db8::1", 53)),
        ("[2001:db8::1]/icmp", "icmp", Endpoint("2001:db8::1", 0)),
        ("203.0.113.5:65535/tcp", "tcp", Endpoint("203.0.113.5", 65535)),
    ],
)
def test_targets(written: str, protocol: str, end: Endpoint) -> None:
    found = target(written)
    assert (found.protocol, found.destination) == (Protocol(protocol), end)


def test_a_time_is_one_of_each_day() -> None:
    assert minutes_of("fri 23:00") == (4 * 1440 + 1380,)
    assert minutes_of("0:05") == tuple(day * 1440 + 5 for day in range(7))


@given(
    st.sampled_from([read_target, read_moment, read_origin]),
    st.none()
    | st.integers()
    | st.text(alphabet="0123456789abcdef.:/[]- monfriudptcp", max_size=20),
)
def test_any_value(read: Any, written: object) -> None:
    try:
        value = read(written)
    except PydanticCustomError:
        return
    assert read(value) == value


def test_the_file_of_the_readme_is_not_needed(tmp_path: Path) -> None:
    """A configuration without assertions has none that fails."""
    found = parse(RULES.replace("assertions:\n", ""), str(tmp_path), resolve_secret=lambda *_: "")
    require_assertions(found, compile_policy(found.config, {}))
