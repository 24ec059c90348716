"""Commands that ask a running gateway: ``status``, ``flows`` and ``reload``.

Nothing heavy may be imported at the top: ``status`` is run by monitors, often.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from gateway.cli.options import json_option, run_dir_option
from gateway.cli.show import amount, columns, print_json, span
from gateway.control.client import ControlClient, NotRunningError
from gateway.errors import GatewayError


@click.command()
@run_dir_option
@json_option
@click.pass_context
def status(ctx: click.Context, run_dir: Path, as_json: bool) -> None:
    """Say whether the gateway runs, since when, and whether each way out is safe.

    Exits with 0 when it runs and no outbound would loop, else with 1, so that a monitor
    can use it. When nothing runs it says whether a dead run left anything in the kernel.

    \b
    Examples:
      gateway status
      gateway status --json | jq .counters
    """
    client = ControlClient(run_dir)
    try:
        health = client.get("/health")
    except NotRunningError as error:
        _show_not_running(error, run_dir, as_json)
        ctx.exit(1)
    counters = client.get("/counters")["counters"]
    groups = client.get("/groups")["groups"]
    if as_json:
        print_json({"running": True, **health, "groups": groups, "counters": counters})
    else:
        click.echo(_status_text(health, groups, counters))
    if not all(outbound["ok"] for outbound in health["outbounds"]):
        ctx.exit(1)


def _show_not_running(error: NotRunningError, run_dir: Path, as_json: bool) -> None:
    # Here and not above: reading the kernel needs libraries that load slowly.
    from gateway.cli.leftovers import read_leftovers

    hint = error.hint
    try:
        left = read_leftovers(run_dir)
    except GatewayError as unseen:
        left, hint = (), f"whether a dead run left anything is not known: {unseen}; {unseen.hint}"
    if left:
        hint = "remove it with `gateway down`, or go on with `gateway run`"
    if as_json:
        print_json({"running": False, "leftovers": left, "hint": hint})
        return
    click.echo(str(error))
    if left:
        click.echo("the kernel has state of ours, of a run that was killed or of `gateway up`:")
        click.echo("\n".join(f"  {line}" for line in left))
    click.echo(f"hint: {hint}")


def _status_text(
    health: dict[str, Any], groups: list[dict[str, Any]], counters: dict[str, int]
) -> str:
    about = [
        ["state", f"{health['state']} for {span(health['uptime_s'])} (process {health['pid']})"],
        ["version", health["version"]],
        ["configuration", health["config"]],
        ["mode", health["mode"]],
        ["backend", f"{health['backend']}: {health['backend_reason']}"],
        ["flows", str(health["flows"])],
        *([["without UDP", ", ".join(health["without_udp"])]] if health["without_udp"] else []),
    ]
    parts = [columns(about)]
    if health["outbounds"]:
        rows = [["OUTBOUND", "TYPE", "LOOP GUARD"]]
        rows += [[o["name"], o["type"], _finding(o)] for o in health["outbounds"]]
        parts.append(columns(rows))
    if groups:
        rows = [["GROUP", "TYPE", "TAKES", "BECAUSE"]]
        rows += [[g["name"], g["type"], ", ".join(g["takes"]), g["reason"]] for g in groups]
        parts.append(columns(rows))
    if counters:
        rows = [["COUNTER", "TOTAL"], *([name, str(n)] for name, n in sorted(counters.items()))]
        parts.append(columns(rows))
    return "\n\n".join(parts)


def _finding(outbound: dict[str, Any]) -> str:
    if outbound["ok"]:
        return f"ok: {outbound['strategy']}: {outbound['route']}" if outbound["route"] else "ok"
    return f"REFUSED: {outbound['reason']}; {outbound['hint']}"


@click.command()
@run_dir_option
@click.option(
    "--recent",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Also list the last N flows that ended, and why they did.",
)
@json_option
def flows(run_dir: Path, recent: int, as_json: bool) -> None:
    """List the flows that pass through the listener now.

    Flows that the kernel decides alone (direct, reject) never reach the listener and are
    not listed; `gateway plan` says which rules those are.

    \b
    Examples:
      gateway flows
      gateway flows --recent 20
      gateway flows --json | jq '.flows[] | select(.outbound == "home")'
    """
    answer = ControlClient(run_dir).get(f"/flows?recent={recent}")
    if as_json:
        print_json(answer)
        return
    if not answer["flows"]:
        click.echo("no flows")
        return
    head = [
        "ID",
        "CLIENT",
        "DESTINATION",
        "NAME",
        "RULE",
        "OUTBOUND",
        "STATE",
        "UP",
        "DOWN",
        "TIME",
    ]
    click.echo(columns([head, *(_flow_row(flow) for flow in answer["flows"])]))


def _flow_row(flow: dict[str, Any]) -> list[str]:
    return [
        str(flow["id"]),
        flow["client"],
        flow["destination"],
        flow["name"] or flow["sniffed"],
        flow["rule"],
        f"{flow['outbound']}>{flow['member']}" if flow["member"] else flow["outbound"],
        flow["close_reason"] or flow["state"],
        amount(flow["bytes_up"]),
        amount(flow["bytes_down"]),
        span(flow["duration_s"]),
    ]


@click.command()
@run_dir_option
@click.option(
    "--shadow",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Change nothing: list the live flows that would go elsewhere under this file.",
)
@json_option
def reload(run_dir: Path, shadow: Path | None, as_json: bool) -> None:
    """Make the running gateway read its configuration again.

    Flows that are open keep going as they are; new ones follow the new rules. A file with
    problems changes nothing: they are listed, and the old rules stay in force. SIGHUP does
    the same, with the answer in the log.

    \b
    Examples:
      gateway check && gateway reload
      gateway reload --shadow new.yaml
    """
    if shadow is not None:
        query = urlencode({"path": shadow.absolute()})
        report = ControlClient(run_dir).request("POST", f"/shadow?{query}")
        if as_json:
            print_json(report)
        else:
            click.echo(_shadow_text(report))
        return
    try:
        answer = ControlClient(run_dir).request("POST", "/reload")
    except NotRunningError:
        raise
    except GatewayError as error:
        raise GatewayError(f"nothing was changed:\n{error}", error.hint) from error
    if as_json:
        print_json(answer)
        return
    click.echo("\n".join(answer["changes"]) or "nothing to change: the configuration is the same")


def _shadow_text(report: dict[str, Any]) -> str:
    """What another file would change, and the live flows that would go elsewhere."""
    rerouted = report["rerouted"]
    parts = ["\n".join(report["changes"])] if report["changes"] else []
    parts.append(f"{len(rerouted)} of {report['compared']} live flows would go elsewhere")
    if rerouted:
        head = ["ID", "CLIENT", "DESTINATION", "NAME", "TAKES", "WOULD TAKE", "BY RULE"]
        keys = ("client", "destination", "name", "outbound", "would_take", "by_rule")
        rows = [[str(flow["id"]), *(flow[key] for key in keys)] for flow in rerouted]
        parts.append(columns([head, *rows]))
    return "\n\n".join(parts)
