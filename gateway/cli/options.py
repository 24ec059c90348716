"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

#: What may not be read is told of by who reads it, with the cure.
_PATH = click.Path(path_type=Path, readable=False)

config_option = click.option(
    "-c",
    "--config",
    "config",
    type=_PATH,
    default=Path("/etc/gateway/gateway.yaml"),
    envvar="GATEWAY_CONFIG",
    show_default=True,
    show_envvar=True,
    help="The configuration file.",
)
run_dir_option = click.option(
    "--run-dir",
    type=_PATH,
    default=Path("/run/gateway"),
    envvar="GATEWAY_RUN_DIR",
    show_default=True,
    show_envvar=True,
    help="Directory of the control socket and the lock; one for each gateway on a machine.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Answer in JSON, for programs.")
