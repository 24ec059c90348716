"""``gateway groups`` and ``gateway select``.

Nothing heavy may be imported at the top, as for all commands that ask a running gateway.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from gateway.cli.options import json_option, run_dir_option
from gateway.cli.show import columns, print_json, span
from gateway.control.client import ControlClient


@click.command()
@run_dir_option
@json_option
def groups(run_dir: Path, as_json: bool) -> None:
    """List the groups of outbounds, which member flows take now, and why.

    Of each member it says whether it is well, since when, how long its probes take, and what
    the last probes were: a dot is a good one, an x a bad one, the newest at the right.

    \b
    Examples:
      gateway groups
      gateway groups --json | jq '.groups[] | {name, takes}'
    """
    answer = ControlClient(run_dir).get("/groups")
    if as_json:
        print_json(answer)
        return
    if not answer["groups"]:
        click.echo("no groups")
        return
    click.echo("\n\n".join(_group_text(group) for group in answer["groups"]))


@click.command()
@click.argument("group")
@click.argument("member")
@run_dir_option
@json_option
def select(group: str, member: str, run_dir: Path, as_json: bool) -> None:
    """Have a group of type select take a member, for all flows that begin from now on.

    The choice is kept in the state directory, and holds after a restart. Flows that are open
    keep their way, unless the group says `interrupt: true`.

    \b
    Example:
      gateway select exit vpn
    """
    query = urlencode({"group": group, "member": member})
    chosen = ControlClient(run_dir).request("POST", f"/select?{query}")
    if as_json:
        print_json(chosen)
    else:
        click.echo(f"{chosen['name']} takes {', '.join(chosen['takes'])}")


def _group_text(group: dict[str, Any]) -> str:
    head = f"{group['name']} ({group['type']}) takes {', '.join(group['takes'])}: {group['reason']}"
    rows = [
        [
            "  >" if member["taken"] else "   ",
            member["name"],
            member["state"],
            "" if member["since"] is None else f"for {span(max(0, time.time() - member['since']))}",
            "" if member["latency_ms"] is None else f"{member['latency_ms']:.0f} ms",
            "".join("x" if each["failure"] else "." for each in member["history"]),
            member["failure"] if member["state"] == "down" else "",
        ]
        for member in group["members"]
    ]
    return f"{head}\n{columns(rows)}"
