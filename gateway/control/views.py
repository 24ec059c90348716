"""The values of a running gateway as JSON. Pure: no HTTP, no clocks, nothing left out but secrets.

Endpoints and rules are shown as the text that logs have, so that one search finds both.
"""

from __future__ import annotations

from dataclasses import asdict

from gateway.control.running import FlowRecord, Health, PlanReport, ReloadReport
from gateway.errors import ConfigError, GatewayError
from gateway.groups.report import GroupRecord

Json = dict[str, object]


def health_view(health: Health) -> Json:
    """``GET /health``."""
    return asdict(health)


def flow_view(flow: FlowRecord) -> Json:
    """One flow of ``GET /flows``."""
    return {
        "id": flow.id,
        "state": str(flow.state),
        "protocol": str(flow.protocol),
        "client": str(flow.client),
        "destination": str(flow.destination),
        "name": flow.name,
        "sniffed": flow.sniffed,
        "interface": flow.interface,
        "rule": flow.rule,
        "outbound": flow.outbound,
        "member": flow.member,
        "started": flow.started,
        "duration_s": round(flow.duration_s, 3),
        "bytes_up": flow.bytes_up,
        "bytes_down": flow.bytes_down,
        "close_reason": None if flow.close_reason is None else str(flow.close_reason),
        "detail": flow.detail,
    }


def flows_view(flows: list[FlowRecord]) -> Json:
    """``GET /flows``."""
    return {"flows": [flow_view(flow) for flow in flows]}


def group_view(group: GroupRecord) -> Json:
    """One group, with its members; of each, the last probes."""
    view = asdict(group)
    for shown, member in zip(view["members"], group.members, strict=True):
        shown["history"] = [
            {"at": each.at, "ms": round(each.seconds * 1000, 1), "failure": each.failure}
            for each in member.history
        ]
    return view


def groups_view(groups: tuple[GroupRecord, ...]) -> Json:
    """``GET /groups``."""
    return {"groups": [group_view(group) for group in groups]}


def counters_view(counters: dict[str, int]) -> Json:
    """``GET /counters``."""
    return {"counters": counters}


def plan_view(report: PlanReport) -> Json:
    """``GET /plan``."""
    return asdict(report)


def reload_view(report: ReloadReport) -> Json:
    """``POST /reload``."""
    return asdict(report)


def error_view(error: GatewayError) -> Json:
    """Any error: its message and hint, and for a configuration each problem by itself."""
    view: Json = {"message": str(error), "hint": error.hint}
    if isinstance(error, ConfigError):
        view["problems"] = [asdict(problem) for problem in error.problems]
    return view
