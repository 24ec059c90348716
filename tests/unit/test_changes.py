"""The sentences that a reload answers with."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.changes import changes
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
            ("subnet kids removed", "lan.this_machine: False before, True now"),
        ),
        (
            {"inbound": {"tcp": "redirect"}},
            ("inbound.tcp: tproxy before, redirect now",),
        ),
    ],
)
def test_each_difference_is_one_sentence(
    sections: dict[str, Any], expected: tuple[str, ...]
) -> None:
    assert changes(config(), config(**sections)) == expected
