"""Servers' names that are looked up by the outbounds which need them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from gateway.config.schema import Config
from gateway.plan.host import HostFacts, Interface
from gateway.plan.lookups import Lookup, needed_names, through_themselves
from gateway.policy.compile import compile_policy

from .scenarios import ROUTER

NAME = "Proxy.Example"
PUBLIC, SIX, LAN_SERVER, HERE = "192.0.2.53", "2001:db8:53::53", "10.0.1.53", "127.0.0.1"
HOME = {"type": "socks5", "server": NAME}


def router(*resolvers: str) -> HostFacts:
    wan = ROUTER.interfaces[1]
    lasting = (ip_address("203.0.113.7"), ip_address("2001:db8:113::7"))
    links = (ROUTER.interfaces[0], replace(wan, lasting=lasting), *ROUTER.interfaces[2:])
    return replace(ROUTER, interfaces=links, resolvers=resolvers)


def found(
    resolver: str, *rules: dict[str, Any], own: bool = True, **sections: Any
) -> tuple[Lookup, ...]:
    config = Config.model_validate(
        {
            "lan": {"interfaces": ["lan0", "lan1"], "this_machine": own},
            "outbounds": {"home": HOME},
            "rules": [*rules, {"to": "home"}],
            **sections,
        }
    )
    return through_themselves(config, compile_policy(config, {}), router(resolver))


@pytest.mark.parametrize("resolver", [PUBLIC, SIX])
def test_this_machine_asks_through_the_server(resolver: str) -> None:
    (lookup,) = found(resolver)
    assert (lookup.outbound, lookup.certain, lookup.resolver) == ("home", True, resolver)
    assert f"{{destination: {resolver}, port: 53, to: direct}}" in lookup.hint
    assert "rules[0]" in lookup.reason
    assert found(resolver, {"destination": resolver, "port": 53, "to": "direct"}) == ()


@pytest.mark.parametrize(
    ("resolver", "own", "rule", "hint"),
    [
        (HERE, True, {"port": 53, "to": "direct"}, "uid: USER_OF_THE_NAME_SERVER"),
        (HERE, True, {"uid": 101, "port": 53, "to": "direct"}, "uid: USER_OF_THE_NAME_SERVER"),
        (LAN_SERVER, False, {"source": LAN_SERVER, "to": "direct"}, f"source: {LAN_SERVER}"),
    ],
)
def test_a_name_server_that_asks_others(
    resolver: str, own: bool, rule: dict[str, Any], hint: str
) -> None:
    (lookup,) = found(resolver, own=own)
    assert (lookup.certain, lookup.asker) == (False, resolver)
    assert hint in lookup.hint
    assert found(resolver, rule, own=own) == ()


@pytest.mark.parametrize(
    ("resolver", "own", "rules", "sections"),
    [
        (PUBLIC, False, (), {}),
        (HERE, False, (), {}),
        (PUBLIC, True, ({"sniffed": "dns", "to": "direct"},), {}),
        (PUBLIC, True, ({"uid": 0, "to": "direct"},), {}),
        (PUBLIC, True, (), {"inbound": {"udp": "off"}}),
        (PUBLIC, True, (), {"outbounds": {"home": {**HOME, "server": "203.0.113.5"}}}),
        (PUBLIC, True, (), {"outbounds": {"home": {**HOME, "server": "localhost"}}}),
    ],
)
def test_nothing_goes_round(
    resolver: str, own: bool, rules: tuple[dict[str, Any], ...], sections: dict[str, Any]
) -> None:
    assert found(resolver, *rules, own=own, **sections) == ()


def test_at_some_hour_is_enough() -> None:
    by_day = {"time": "08:00-20:00", "to": "direct"}
    (lookup,) = found(PUBLIC, by_day)
    assert "rules[1]" in lookup.rule


def test_a_machine_without_an_address_of_that_family_asks_nobody() -> None:
    bare = replace(router(SIX), interfaces=(Interface("lan0", 1, True),))
    config = Config.model_validate(
        {"lan": {"this_machine": True}, "outbounds": {"home": HOME}, "rules": [{"to": "home"}]}
    )
    assert through_themselves(config, compile_policy(config, {}), bare) == ()
    assert needed_names(config) == {"proxy.example": frozenset({"home"})}
