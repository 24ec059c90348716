"""A plan as a shell script that does and undoes it by hand: ``sh gateway.sh up`` or ``down``."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.plan.addresses import Family
from gateway.plan.model import Backend, Plan
from gateway.plan.render_ip import render_ip, route_line, rule_line
from gateway.plan.render_iptables import removal_arguments, render_ipset, render_iptables
from gateway.plan.render_nft import REMOVE, render_nft

_HEAD = """\
#!/bin/sh
# What the gateway changes in this machine's kernel, by hand.
# usage: sh gateway.sh up|down    (as root; up may be repeated)
set -eu

# The sysctls' values from before, for down.
saved=${GATEWAY_SAVED:-/run/gateway-script.sysctl}

# For what may be gone already.
try() {
    "$@" 2>/dev/null || :
}
"""

_TAIL = """\
case ${1-} in
up) down; up ;;
down) down ;;
*)
    echo "usage: $0 up|down" >&2
    exit 2
    ;;
esac
"""

_COMMAND = {Family.V4: "iptables", Family.V6: "ip6tables"}


def render_script(plan: Plan) -> str:
    """The script, for any POSIX shell; it needs ip, sysctl and the tools of the backend.

    Other programs' firewalls are left alone: where one drops what ``plan.accept_input``
    names, the comment at the end of ``up`` says what it has to accept.
    """
    return "\n".join([_HEAD, _function("up", _up(plan)), _function("down", _down(plan)), _TAIL])


def _function(name: str, lines: Iterator[str]) -> str:
    return "\n".join([f"{name}() {{", *lines, "}", ""])


def _up(plan: Plan) -> Iterator[str]:
    if plan.sysctls:
        keys = " ".join(sysctl.key for sysctl in plan.sysctls)
        yield f'    sysctl {keys} >"$saved"'
    for line in render_ip(plan).splitlines():
        yield f"    {line}"
    if plan.backend is Backend.NFTABLES:
        yield from _fed("nft -f -", render_nft(plan))
    else:
        yield from _fed("ipset restore", render_ipset(plan))
        for family in Family:
            yield from _fed(f"{_legacy(family)}-restore --noflush", render_iptables(plan, family))
    for mark in plan.accept_input:
        yield f"    # An input firewall on this machine has to accept packets with mark {mark}."
    for mark in plan.accept_forward:
        yield f"    # A forward firewall on this machine has to accept packets with mark {mark}."


def _down(plan: Plan) -> Iterator[str]:
    if plan.backend is Backend.NFTABLES:
        yield from _fed("nft -f -", REMOVE)
    else:
        for family in Family:
            for arguments in removal_arguments(plan, family):
                yield f"    try {_legacy(family)} {arguments}"
        for address_set in plan.sets:
            yield f"    try ipset destroy {address_set.name}"
    for rule in plan.ip_rules:
        yield f"    try {rule_line(rule, 'del')}"
    for route in plan.routes:
        yield f"    try {route_line(route, 'del')}"
    yield '    if [ -e "$saved" ]; then'
    yield '        sysctl -q -p "$saved"'
    yield '        rm "$saved"'
    yield "    fi"


def _fed(command: str, text: str) -> Iterator[str]:
    """The command with a text on its standard input; nothing for no text."""
    if text:
        yield f"    {command} <<'END'"
        yield f"{text}END"


def _legacy(family: Family) -> str:
    """The variant that python-iptables uses too, where the two are told apart by name."""
    return f'"$(command -v {_COMMAND[family]}-legacy || command -v {_COMMAND[family]})"'
