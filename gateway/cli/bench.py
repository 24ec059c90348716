"""``gateway bench``: measure, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.cli.options import json_option
from gateway.cli.show import print_json
from gateway.errors import GatewayError

if TYPE_CHECKING:
    from gateway.lab.bench.suite import Sizes, Suite

LOG_COLUMNS = 160


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
      gateway bench latency --quick
    """


def _shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """What every benchmark can be told."""
    options = (
        click.option(
            "--quick", is_flag=True, help="One short round: an impression, not a measurement."
        ),
        click.option(
            "--rounds", type=click.IntRange(1, 100), help="Interleaved rounds.  [default: 3]"
        ),
        click.option(
            "--seconds",
            type=click.FloatRange(0.05, 60),
            help="Length of each window.  [default: 1.0]",
        ),
        json_option,
        click.option(
            "--output",
            type=click.Path(path_type=Path, dir_okay=False, writable=True),
            help="Write the JSON to a file, besides.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@bench.command()
@click.option(
    "--idle-flows", type=click.IntRange(1, 8000), help="Flows to hold open.  [default: 2000]"
)
@click.option("--redirect", is_flag=True, help="Measure this gateway in redirect mode, too.")
@_shared_options
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
    from gateway.lab.bench.tcp import suite

    sizes = _sizes(quick, rounds, seconds, idle_flows)
    _measure(suite(redirect=redirect), sizes, as_json, output)


@bench.command()
@_shared_options
def latency(
    quick: bool, rounds: int | None, seconds: float | None, as_json: bool, output: Path | None
) -> None:
    """First byte: how long a client waits where the SOCKS server is 50 ms away and back.

    Far from the server it is not CPU that counts, but how often something has to cross the
    link and back before the first byte of an answer is there:

    \b
      plain forwarding              2  connect; request and answer
      a SOCKS proxy, step by step   4  connect; greeting; SOCKS request; request and answer
      the handshake in one flight   3  connect; greeting with SOCKS request; request and answer
      a connection that was ready   2  SOCKS request; request and answer

    The first row, in round trips, is the median wait divided by a ping to the server in the
    same round. This gateway is measured as it comes (`handshake: auto`, which learns from its first
    flow, and `pool: auto`), without the pool, and with neither (`handshake: strict`); beside it,
    what is installed of redsocks, sing-box, ipt2socks, v2ray and pproxy. 20 clients
    connect, ask, and begin again. A p99 is worth more in a longer window.

    \b
    Examples:
      gateway bench latency
      gateway bench latency --rounds 5 --seconds 5 --output latency.json
    """
    from gateway.lab.bench.latency import suite

    _measure(suite(), _sizes(quick, rounds, seconds), as_json, output)


def _sizes(
    quick: bool, rounds: int | None, seconds: float | None, idle_flows: int | None = None
) -> Sizes:
    """The usual ones, or the quick ones, but for what was chosen."""
    from gateway.lab.bench.suite import QUICK, Sizes

    usual = QUICK if quick else Sizes()
    return Sizes(rounds or usual.rounds, seconds or usual.seconds, idle_flows or usual.idle_flows)


def _measure(suite: Suite, sizes: Sizes, as_json: bool, output: Path | None) -> None:
    """Run it, with a progress bar, and show and write what it found."""
    from gateway.lab.bench.runner import run
    from gateway.lab.bench.table import render

    with _progress() as progress:
        bar = progress.add_task("", total=1.0)
        report = run(
            suite,
            sizes,
            lambda what, part: progress.update(bar, description=what, completed=part),
        )
    if output is not None:
        _write(output, json.dumps(report.to_json(), indent=2) + "\n")
    if as_json:
        print_json(report.to_json())
    else:
        console = Console()
        # Rich takes 80 columns where there is no terminal, which would break every cell.
        if not console.is_terminal:
            console.width = LOG_COLUMNS
        console.print(render(report))


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
