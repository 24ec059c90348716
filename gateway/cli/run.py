"""``gateway run``."""

from __future__ import annotations

from pathlib import Path

import click

from gateway import app
from gateway.cli.options import config_option, run_dir_option


@click.command()
@config_option
@run_dir_option
def run(config: Path, run_dir: Path) -> None:
    """Run the gateway in the foreground until it is told to stop.

    Cleans up after a run that was killed, puts rules and routes in place, diverts and
    relays. It logs to standard error: one line for each flow that ended. SIGTERM or Ctrl-C
    removes everything again; SIGHUP reads the configuration again.

    \b
    Examples:
      gateway run
      gateway run --config ./gateway.yaml --run-dir /run/gateway-test
    """
    app.run(config, run_dir)
