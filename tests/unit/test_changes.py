"""The sentences that a reload answers with."""

from __future__ import annotations

from typing import Any, get_origin

import pytest
from pydantic import BaseModel

from gateway.changes import _ENTRIES, changes
from gateway.config.schema import Config

BASE: dict[str, Any] = {
    "lan": {"interfaces": ["lan0"], "subnets": {"kids": ["192.168.20.0/24"]}},
    "outbounds": {"home": {"type": "socks5", "server": "203.0.113.5"}},
    "rules": [{"to": "home"}],
}


def config(**sections: Any) -> Config:
    return Config.model_validate({**BASE, **sections})


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, ()),
        ({"sniff": {"timeout": 1}}, ("sniff.timeout: 0.3 before, 1.0 now",)),
        (
            {"outbounds": {"work": {"type": "direct"}, **BASE["outbounds"]}},
            ("outbound work added",),
        ),
        (
            {"outbounds": {"home": {"type": "socks5", "server": "203.0.113.6"}}},
            ("outbound home changed",),
        ),
        (
            {"rules": [{"port": 80, "to": "direct"}, {"to": "home"}]},
            ("rules changed: 1 before, 2 now",),
        ),
        (
            {"lan": {"interfaces": ["lan0"], "this_machine": True}},
            ("subnet kids removed", "lan.this_machine: false before, true now"),
        ),
        (
            {"inbound": {"tcp": "redirect"}},
            ("inbound.tcp: tproxy before, redirect now",),
        ),
        (
            {"lan": {**BASE["lan"], "devices": {"tv": "02:00:5e:00:53:01"}, "leases": "/a"}},
            ("device tv added", "lan.leases: [] before, [/a] now"),
        ),
        ({"lists": {"kids": [{"to": "direct"}]}}, ("list kids added",)),
        ({"geo": {"country": "a.mmdb"}}, ("geo.country: nothing before, a.mmdb now",)),
        ({"time_zone": "Europe/Berlin"}, ("time_zone: nothing before, Europe/Berlin now",)),
        ({"state_dir": "/b"}, ("state_dir: /var/lib/gateway before, /b now",)),
        (
            {"assertions": [{"from": "kids", "to": "a.example:1", "expect": "home"}]},
            ("assertions changed: 0 before, 1 now",),
        ),
    ],
)
def test_each_difference_is_one_sentence(
    sections: dict[str, Any], expected: tuple[str, ...]
) -> None:
    assert changes(config(), config(**sections)) == expected


def test_every_mapping_has_a_word_for_its_entries() -> None:
    """Whatever key changes is told of: none of the schema is left out."""
    models = [Config, *(f.annotation for f in Config.model_fields.values())]
    sections = [m for m in models if isinstance(m, type) and issubclass(m, BaseModel)]
    assert len(sections) > 10
    mappings = {
        key
        for section in sections
        for key, field in section.model_fields.items()
        if get_origin(field.annotation) is dict
    }
    assert mappings == set(_ENTRIES)
