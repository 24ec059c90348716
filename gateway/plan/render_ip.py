"""Policy routing and sysctls as arguments of ip(8) and sysctl(8), one line each."""

from __future__ import annotations

from shlex import quote

from gateway.marks import ROUTE_PROTOCOL
from gateway.plan.addresses import Family
from gateway.plan.model import IpRule, Plan, Route, Sysctl

_OPTION = {Family.V4: "-4", Family.V6: "-6"}


def render_ip(plan: Plan) -> str:
    """The lines that add it all, in the order in which they are to run."""
    lines = [
        *map(sysctl_line, plan.sysctls),
        *(route_line(route, "add") for route in plan.routes),
        *(rule_line(rule, "add") for rule in plan.ip_rules),
    ]
    return "".join(line + "\n" for line in lines)


def rule_line(rule: IpRule, verb: str) -> str:
    """``ip rule VERB ...`` (ip-rule(8)); ``verb`` is ``add`` or ``del``."""
    words = ["ip", _OPTION[rule.family], "rule", verb, "priority", str(rule.priority)]
    if rule.source is not None:
        words += ["from", str(rule.source)]
    if rule.iif is not None:
        words += ["iif", rule.iif]
    if rule.oif is not None:
        words += ["oif", rule.oif]
    if rule.mark is not None:
        words += ["fwmark", str(rule.mark)]
    if rule.uid is not None:
        words += ["uidrange", f"{rule.uid}-{rule.uid}"]
    words += ["protocol", f"{ROUTE_PROTOCOL:#x}", rule.action]
    target = rule.table if rule.action == "lookup" else rule.goto
    if target is not None:
        words.append(str(target))
    if rule.suppress_prefixlen is not None:
        words += ["suppress_prefixlength", str(rule.suppress_prefixlen)]
    if rule.realm is not None:
        words += ["realms", str(rule.realm)]
    return " ".join(words)


def route_line(route: Route, verb: str) -> str:
    """``ip route VERB ...`` (ip-route(8)): ``add``, ``replace`` or ``del``."""
    via = f" via {route.via}" if route.via else ""
    # The others lead nowhere, and IPv4 takes no device for them.
    device = f" dev {route.device}" if route.kind in ("unicast", "local") else ""
    onlink = " onlink" if route.via and verb != "del" else ""
    metric = f" metric {route.metric}" if route.metric is not None else ""
    return (
        f"ip {_OPTION[route.family]} route {verb} {route.kind} {route.destination}{via}"
        f"{device}{onlink} table {route.table} proto {ROUTE_PROTOCOL:#x}{metric}"
    )


def sysctl_line(sysctl: Sysctl) -> str:
    """``sysctl -w KEY=VALUE`` (sysctl(8)), with the reason as a comment."""
    return f"sysctl -w {quote(f'{sysctl.key}={sysctl.value}')}  # {sysctl.reason}"
