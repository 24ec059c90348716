"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

config_option = click.option(
    "-c",
    "--config",
    "config",
    type=click.Path(path_type=Path),
    default=Path("/etc/gateway/gateway.yaml"),
    envvar="GATEWAY_CONFIG",
    show_default=True,
    show_envvar=True,
    help="The configuration file.",
)
run_dir_option = click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    default=Path("/run/gateway"),
    envvar="GATEWAY_RUN_DIR",
    show_default=True,
    show_envvar=True,
    help="Directory of the control socket and the lock; one for each gateway on a machine.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Answer in JSON, for programs.")
