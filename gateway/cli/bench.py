"""``gateway bench``: measure, side by side."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.cli.options import json_option
from gateway.cli.show import print_json
from gateway.errors import GatewayError


@click.group()
def bench() -> None:
    """Measure this gateway beside plain forwarding and other proxies, in one run.

    Everything happens in network namespaces of this machine, each candidate in its own LAN:
    clients, a router, and a SOCKS5 server that is itself the far end. Rounds are interleaved,
    so that all meet the same conditions; compare ratios within a run, not figures of two runs.
    Needs root.

    \b
    Examples:
      gateway bench tcp
      gateway bench tcp --quick
    """


@bench.command()
@click.option("--quick", is_flag=True, help="One short round: an impression, not a measurement.")
@click.option("--rounds", type=click.IntRange(1, 100), help="Interleaved rounds.  [default: 3]")
@click.option(
    "--seconds", type=click.FloatRange(0.05, 60), help="Length of each window.  [default: 1.0]"
)
@click.option(
    "--idle-flows", type=click.IntRange(1, 8000), help="Flows to hold open.  [default: 2000]"
)
@click.option("--redirect", is_flag=True, help="Measure this gateway in redirect mode, too.")
@json_option
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Write the JSON to a file, besides.",
)
def tcp(
    quick: bool,
    rounds: int | None,
    seconds: float | None,
    idle_flows: int | None,
    redirect: bool,
    as_json: bool,
    output: Path | None,
) -> None:
    """TCP: throughput and its CPU, new connections and their CPU, latency, memory.

    Besides plain forwarding and this gateway it measures what is installed of redsocks,
    sing-box, ipt2socks, v2ray and pproxy.

    \b
    Examples:
      gateway bench tcp --rounds 5 --output bench.json
      gateway bench tcp --redirect
    """
    from gateway.lab.bench import tcp as tcp_suite
    from gateway.lab.bench.runner import run
    from gateway.lab.bench.suite import QUICK, Sizes
    from gateway.lab.bench.table import render

    usual = QUICK if quick else Sizes()
    sizes = Sizes(rounds or usual.rounds, seconds or usual.seconds, idle_flows or usual.idle_flows)
    with _progress() as progress:
        bar = progress.add_task("", total=1.0)
        report = run(
            tcp_suite.suite(redirect=redirect),
            sizes,
            lambda what, part: progress.update(bar, description=what, completed=part),
        )
    if output is not None:
        _write(output, json.dumps(report.to_json(), indent=2) + "\n")
    if as_json:
        print_json(report.to_json())
    else:
        Console().print(render(report))


def _progress() -> Progress:
    """On standard error: standard output is for the result."""
    return Progress(
        TextColumn("{task.description:<50}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise GatewayError(f"cannot write {path}: {error.strerror}") from error
