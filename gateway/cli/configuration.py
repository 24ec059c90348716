"""Commands about the configuration file: ``init``, ``check`` and ``schema``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from gateway.assembly import (
    Assembly,
    assemble,
    findings,
    require_apart,
    require_loop_free,
)
from gateway.cli.options import config_option, json_option
from gateway.cli.show import print_json
from gateway.config.schema import Config
from gateway.config.starter import starter
from gateway.control.views import error_view
from gateway.errors import ConfigError, GatewayError, Problem
from gateway.kernel.guard import Finding
from gateway.kernel.probe import probe_host
from gateway.policy.lint import lint


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, allow_dash=True),
    default=Path("/etc/gateway/gateway.yaml"),
    envvar="GATEWAY_CONFIG",
    show_default=True,
    show_envvar=True,
    help="Where to write; - is standard output.",
)
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
def init(output: Path, force: bool) -> None:
    """Write a first configuration, with comments, from what this machine has.

    It takes the interface of the default route for the outside, and every other one with a
    private address for the LAN. All traffic is sent direct at first: put your proxy and
    your rules in, then prove it with `gateway check`.

    \b
    Examples:
      gateway init
      gateway init --output - | less
    """
    text = starter(probe_host("nftables"))  # the firewalls do not matter, and iptables is slow
    if str(output) == "-":
        click.echo(text, nl=False)
        return
    if output.exists() and not force:
        raise GatewayError(f"{output} exists", "--force overwrites it; --output writes elsewhere")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # It may hold passwords one day, so nobody else may read it from the first.
        output.touch(mode=0o600)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise GatewayError(
            f"cannot write {output}: {error.strerror}", "run this as root, or give --output"
        ) from error
    click.echo(f"wrote {output}; next: edit it, then `gateway check`")


@click.command()
@config_option
@json_option
@click.pass_context
def check(ctx: click.Context, config: Path, as_json: bool) -> None:
    """Say whether the configuration would work on this machine, without changing anything.

    Reads the file, compiles its rules, asks them its assertions, plans the kernel state, and
    asks the kernel where the packets of each outbound would go. Every problem is listed at
    once, with its line and its cure; rules that never match, and names that no rule uses, are
    warnings. Exits with 0 when all is well, 2 for a problem in the file, 1 for one of the
    machine.

    \b
    Examples:
      gateway check
      gateway check --config new.yaml --json
    """
    try:
        assembly = assemble(config)
        found = findings(assembly)
        require_loop_free(found)
        require_apart(assembly)
        warnings = _warnings(assembly)
    except GatewayError as error:
        if not as_json:
            raise
        print_json({"ok": False, **error_view(error)})
        ctx.exit(2 if isinstance(error, ConfigError) else 1)
    if as_json:
        print_json(_as_json(assembly, found, warnings))
    else:
        for warning in warnings:
            click.echo(f"warning: {warning}")
        for lookup in assembly.lookups:
            click.echo(f"warning: outbound {lookup.outbound}: {lookup.reason}; {lookup.hint}")
        click.echo(_summary(assembly, found))
    if not all(finding.ok for finding in found):
        ctx.exit(1)


def _warnings(assembly: Assembly) -> list[Problem]:
    """What is legal, but hardly meant, in the order of the file."""
    source = assembly.store.loaded.source
    found = [source.problem(each) for each in lint(assembly.config, assembly.policy)]
    return sorted(found, key=lambda problem: (problem.line, problem.column))


def _as_json(
    assembly: Assembly, found: tuple[Finding, ...], warnings: list[Problem]
) -> dict[str, object]:
    return {
        "ok": all(finding.ok for finding in found),
        "backend": assembly.backend,
        "backend_reason": assembly.backend_reason,
        "rules": len(assembly.config.rules),
        "skipped": {
            name: [each._asdict() for each in skipped]
            for name, skipped in assembly.store.skipped.items()
        },
        "warnings": [asdict(warning) for warning in warnings],
        "lookups": [
            {**asdict(lookup), "reason": lookup.reason, "hint": lookup.hint}
            for lookup in assembly.lookups
        ],
        "outbounds": [
            {
                "name": finding.egress.outbound,
                "destination": finding.egress.destination,
                "strategy": finding.egress.how,
                "outcome": finding.outcome,
                "route": finding.route,
                "reason": finding.reason,
                "hint": finding.hint,
            }
            for finding in found
        ],
    }


def _summary(assembly: Assembly, found: tuple[Finding, ...]) -> str:
    config = assembly.config
    lines = [
        f"{assembly.path}: rules: {len(config.rules)}; outbounds written: {len(config.outbounds)}",
        f"backend: {assembly.backend}: {assembly.backend_reason}",
        *(_path_line(finding) for finding in found),
    ]
    unresolved = [name for name, addresses in assembly.upstreams.items() if not addresses]
    lines += [f"outbound {name}: its server's name does not resolve now" for name in unresolved]
    lines += [
        f"rule set {name} is without {', '.join(map(str, skipped))}"
        for name, skipped in assembly.store.skipped.items()
    ]
    lines.append("ok" if all(finding.ok for finding in found) else "not all outbounds are usable")
    return "\n".join(lines)


def _path_line(finding: Finding) -> str:
    egress = finding.egress
    way = f"outbound {egress.outbound} to {egress.destination} by {egress.how}"
    if finding.ok:
        return f"{way}: {finding.reason or finding.route}"
    return f"{way}: REFUSED: {finding.reason}; {finding.hint}"


@click.command()
def schema() -> None:
    """Print the JSON schema of the configuration file.

    Editors complete and check keys with it. In a YAML file, the first line
    `# yaml-language-server: $schema=gateway.schema.json` names it.

    \b
    Example:
      gateway schema > gateway.schema.json
    """
    print_json(Config.model_json_schema())
