"""Configurations with groups, for tests."""

from __future__ import annotations

from typing import Any

from gateway.config.schema import Config

SOCKS = {"type": "socks5", "server": "203.0.113.5"}


def config(**outbounds: dict[str, Any]) -> Config:
    known = {"home": SOCKS, "away": {**SOCKS, "port": 1081}, **outbounds}
    return Config.model_validate(
        {"lan": {"interfaces": "eth1"}, "outbounds": known, "rules": [{"to": "direct"}]}
    )


def group(kind: str, *members: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "members": list(members), **more}
