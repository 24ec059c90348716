"""The exact texts of each scenario: what reviewers read to see what reaches the kernel."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.plan.addresses import Family
from gateway.plan.model import Backend
from gateway.plan.render_ip import render_ip
from gateway.plan.render_iptables import render_ipset, render_iptables
from gateway.plan.render_nft import render_nft

from .scenarios import SCENARIOS

Golden = Callable[[str, str], None]


@pytest.mark.parametrize("name", SCENARIOS)
def test_nftables(name: str, golden: Golden) -> None:
    golden(f"plan/{name}.nft", render_nft(SCENARIOS[name].plan(Backend.NFTABLES)))


@pytest.mark.parametrize("name", SCENARIOS)
def test_iptables(name: str, golden: Golden) -> None:
    plan = SCENARIOS[name].plan(Backend.IPTABLES)
    parts = [
        ("ipset restore", render_ipset(plan)),
        ("iptables-restore --noflush", render_iptables(plan, Family.V4)),
        ("ip6tables-restore --noflush", render_iptables(plan, Family.V6)),
    ]
    golden(f"plan/{name}.rules", "\n".join(f"# {title}\n{text}" for title, text in parts))


@pytest.mark.parametrize("name", SCENARIOS)
def test_ip(name: str, golden: Golden) -> None:
    plan = SCENARIOS[name].plan(Backend.NFTABLES)
    places = "".join(f"# {p.rule}: {p.place}: {p.reason}\n" for p in plan.placements)
    golden(f"plan/{name}.ip", places + render_ip(plan))
