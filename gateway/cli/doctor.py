"""``gateway doctor``: read everything, judge it, show it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from gateway.assembly import assemble, findings
from gateway.cli import clash_checks, config_checks, machine_checks
from gateway.cli.examination import Check, Examined, Status
from gateway.cli.leftovers import read_leftovers
from gateway.cli.options import config_option, json_option, run_dir_option
from gateway.cli.show import print_json
from gateway.config.load import load
from gateway.config.schema import Config
from gateway.control.client import ControlClient
from gateway.errors import GatewayError
from gateway.kernel import readings
from gateway.kernel.guard import Finding
from gateway.kernel.probe import probe_host
from gateway.marks import DEFAULT_TCP_PORT, DIVERTING_TABLES
from gateway.plan.lookups import Lookup

_COLOURS = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}


@click.command()
@config_option
@run_dir_option
@json_option
@click.pass_context
def doctor(ctx: click.Context, config: Path, run_dir: Path, as_json: bool) -> None:
    """Look for what is wrong with this machine, with the evidence and a cure for each.

    Looks at privileges, kernel features and settings, other programs' marks, tables and
    firewalls, the configuration, and where each outbound's packets would go. It changes
    nothing. Exits with 1 when a check fails. Run it as root: without, it sees less.

    \b
    Examples:
      gateway doctor
      gateway doctor --json > report.json
    """
    checks = list(judge(examine(config, run_dir)))
    if as_json:
        print_json({"checks": [asdict(check) for check in checks]})
    else:
        click.echo("\n".join(_lines(checks)))
    if any(check.status is Status.FAIL for check in checks):
        ctx.exit(1)


def judge(seen: Examined) -> Iterator[Check]:
    """Every check, the machine's first. Pure."""
    for check in (*machine_checks.CHECKS, *clash_checks.CHECKS, *config_checks.CHECKS):
        yield from check(seen)


def examine(path: Path, run_dir: Path) -> Examined:
    """Read the machine and the configuration; what fails to be read is part of the result."""
    config, config_error = _load(path)
    paths, lookups, path_error = _prove(path) if config else ((), (), None)
    facts = probe_host(nfqueue=config is not None and config.inbound.classify == "nfqueue")
    port = config.inbound.port if config else DEFAULT_TCP_PORT
    return Examined(
        facts=facts,
        readings=readings.read(facts.interfaces, DIVERTING_TABLES, port),
        config=config,
        config_error=config_error,
        paths=paths,
        path_error=path_error,
        lookups=lookups,
        gateway_process=_gateway_process(run_dir),
        leftovers=_leftovers(run_dir),
    )


def _load(path: Path) -> tuple[Config | None, GatewayError | None]:
    try:
        return load(path).config, None
    except GatewayError as error:
        return None, error


def _prove(
    path: Path,
) -> tuple[tuple[Finding, ...], tuple[Lookup, ...], GatewayError | None]:
    try:
        assembly = assemble(path)
        return findings(assembly), assembly.lookups, None
    except GatewayError as error:
        return (), (), error


def _gateway_process(run_dir: Path) -> int | None:
    try:
        return int(ControlClient(run_dir).get("/health")["pid"])
    except GatewayError:
        return None


def _leftovers(run_dir: Path) -> tuple[str, ...] | None:
    try:
        return read_leftovers(run_dir)
    except GatewayError:
        return None


def _lines(checks: list[Check]) -> Iterator[str]:
    width = max(len(check.name) for check in checks)
    for check in checks:
        status = click.style(f"{check.status:<4}", fg=_COLOURS[check.status], bold=True)
        yield f"{status}  {check.name:<{width}}  {check.evidence}"
        if check.cure:
            yield f"{'':4}  {'':{width}}  cure: {check.cure}"
    counts = [f"{sum(c.status is status for c in checks)} {status}" for status in Status]
    yield ", ".join(counts)
