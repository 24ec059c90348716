"""``gateway plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from gateway.assembly import assemble
from gateway.cli.options import config_option, json_option, run_dir_option
from gateway.cli.show import columns, print_json
from gateway.control.client import ControlClient
from gateway.control.running import PlanReport
from gateway.control.views import plan_view
from gateway.errors import GatewayError
from gateway.kernel.applier import Applier
from gateway.plan.diff import diff
from gateway.plan.render import render
from gateway.plan.script import render_script


@click.command()
@config_option
@run_dir_option
@click.option(
    "--backend",
    type=click.Choice(["auto", "iptables", "nftables"]),
    help="Plan for this firewall, whatever the file says.",
)
@click.option("--script", is_flag=True, help="Print a shell script that does and undoes it.")
@json_option
def plan(
    config: Path,
    run_dir: Path,
    backend: Literal["auto", "iptables", "nftables"] | None,
    script: bool,
    as_json: bool,
) -> None:
    """Show exactly what would be changed in the kernel, and change nothing.

    First the text of every firewall rule, set, ip rule, route and kernel setting; then how
    that differs from what is installed now; then for each of your rules whether the kernel
    decides it alone or the listener does, and why. While a gateway runs, what it has found out
    about its outbounds counts as well: where one carries no UDP, the kernel refuses it.

    \b
    Examples:
      gateway plan
      gateway plan --backend iptables
      gateway plan --script > gateway.sh && sh gateway.sh up
    """
    assembly = assemble(config, backend, _found_without_udp(run_dir))
    wanted = assembly.plan
    if script:
        click.echo(render_script(wanted), nl=False)
        return
    installed = Applier(run_dir).snapshot(wanted.backend)
    report = PlanReport(
        render(wanted),
        wanted.placements,
        diff(installed, wanted).render(),
        tuple(sorted(assembly.unable)),
    )
    if as_json:
        print_json(plan_view(report))
    else:
        click.echo(_text(report))


def _found_without_udp(run_dir: Path) -> frozenset[str]:
    """The outbounds that a running gateway has found to carry no UDP; none where none answers."""
    try:
        return frozenset(ControlClient(run_dir).get("/health")["without_udp"])
    except GatewayError:
        return frozenset()


def _text(report: PlanReport) -> str:
    unable = ", ".join(report.without_udp)
    places = [[one.rule, one.place, one.reason] for one in report.placements]
    return "\n".join(
        [
            report.text.rstrip(),
            "",
            "# difference from what is installed",
            report.difference.rstrip() or "none",
            "",
            "# where each rule is decided",
            columns([["RULE", "WHERE", "WHY"], *places]),
            *((f"\n# outbounds without UDP: {unable}",) if unable else ()),
        ]
    )
