"""A whole plan as the text that a person would apply, whatever its backend."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.plan.addresses import Family
from gateway.plan.model import Backend, Plan
from gateway.plan.render_ip import render_ip
from gateway.plan.render_iptables import render_ipset, render_iptables
from gateway.plan.render_nft import render_nft


def render(plan: Plan) -> str:
    """Settings, routes and rules, then the firewall, each part under the command that reads it."""
    return "\n".join(f"# {command}\n{text}" for command, text in _parts(plan) if text)


def _parts(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "sh", render_ip(plan)
    if plan.backend is Backend.NFTABLES:
        yield "nft -f -", render_nft(plan)
        return
    yield "ipset restore", render_ipset(plan)
    yield "iptables-legacy-restore --noflush", render_iptables(plan, Family.V4)
    yield "ip6tables-legacy-restore --noflush", render_iptables(plan, Family.V6)
