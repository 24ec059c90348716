"""``gateway version``."""

from __future__ import annotations

import platform

import click

from gateway.cli.options import json_option
from gateway.cli.show import print_json
from gateway.version import VERSION


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the version of the gateway, of Python and of the kernel.

    Put its output into a bug report.

    \b
    Example:
      gateway version --json
    """
    found = {
        "gateway": VERSION,
        "python": platform.python_version(),
        "kernel": platform.release(),
    }
    if as_json:
        print_json(found)
    else:
        click.echo(f"gateway {VERSION} (Python {found['python']}, Linux {found['kernel']})")
