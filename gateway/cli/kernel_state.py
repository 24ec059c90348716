"""``gateway up`` and ``gateway down``: the kernel state alone, without a listener."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click

from gateway.assembly import (
    assemble,
    findings,
    require_apart,
    require_loop_free,
)
from gateway.cli.options import config_option, run_dir_option
from gateway.control.lock import run_lock
from gateway.kernel.applier import Applier, Report


@click.command()
@config_option
@run_dir_option
def up(config: Path, run_dir: Path) -> None:
    """Put the kernel state in place without running a listener.

    For looking at rules, and for handing a machine over to another run. While no listener
    runs, what your rules proxy is refused (or passed on, with `on_failure: open`); what
    they send direct or reject works. `gateway run` does all of this by itself.

    \b
    Example:
      gateway up && nft list table inet gateway; gateway down
    """
    with run_lock(run_dir):
        assembly = assemble(config)
        require_loop_free(findings(assembly))
        require_apart(assembly)
        report = Applier(run_dir).apply(assembly.plan)
    _tell(report, "nothing to do: all is in place")
    fate = "refused" if assembly.config.inbound.on_failure == "closed" else "routed on"
    click.echo(f"no listener runs: what rules would proxy is {fate} until `gateway run`")


@click.command()
@run_dir_option
@click.option("--force", is_flag=True, help="Even while a gateway runs: it would be cut off.")
def down(run_dir: Path, force: bool) -> None:
    """Remove everything of ours from the kernel, and restore the settings it changed.

    Works after any crash, without the configuration and without any memory of the run:
    what is ours is found by its tags, on both firewalls. Flows that were redirected are
    forgotten, so that their next packets go where they were sent to. Other programs' rules
    are not touched. Refuses while a gateway runs; stop that one instead.

    \b
    Example:
      gateway down
    """
    with nullcontext() if force else run_lock(run_dir):
        applier = Applier(run_dir)
        removed = applier.remove()
        forgotten = applier.forget_redirected()
    steps = (*removed.steps, *forgotten.steps)
    _tell(Report(steps), "nothing to do: nothing of ours is in the kernel")


def _tell(report: Report, otherwise: str) -> None:
    click.echo("\n".join(report.steps) or otherwise)
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
