"""What every ``gateway bench`` that compares can be told, and how it is run and shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.cli.options import json_option
from gateway.cli.show import print_json, write

if TYPE_CHECKING:
    from gateway.lab.bench.suite import Sizes, Suite

T = TypeVar("T")

LOG_COLUMNS: Final = 160
NEW_FILE: Final = click.Path(path_type=Path, dir_okay=False, writable=True)


def shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """What every comparison can be told; it becomes keywords for ``compare``."""
    options = (
        click.option(
            "--quick", is_flag=True, help="One short round: an impression, not a measurement."
        ),
        click.option("--rounds", type=click.IntRange(1, 100), help="Interleaved rounds."),
        click.option("--seconds", type=click.FloatRange(0.05, 60), help="Length of each window."),
        click.option(
            "--candidate", "candidates", multiple=True, help="Only those with this in their name."
        ),
        click.option(
            "--scenario", "scenarios", multiple=True, help="Only those with this in their title."
        ),
        json_option,
        click.option("--output", type=NEW_FILE, help="Write the JSON to a file, besides."),
        click.option("--svg", type=NEW_FILE, help="Draw the ratios into a file, besides."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def compare(
    suite: Suite,
    quick: bool,
    rounds: int | None,
    seconds: float | None,
    candidates: tuple[str, ...],
    scenarios: tuple[str, ...],
    idle_flows: int | None = None,
    **results: Any,
) -> None:
    """Run a suite, but for what was chosen otherwise."""
    from gateway.lab.bench.suite import QUICK, Sizes

    usual = QUICK if quick else suite.sizes
    sizes = Sizes(rounds or usual.rounds, seconds or usual.seconds, idle_flows or usual.idle_flows)
    _measure(suite.only(candidates, scenarios), sizes, **results)


def _measure(
    suite: Suite, sizes: Sizes, as_json: bool, output: Path | None, svg: Path | None
) -> None:
    """Run it, with a progress bar, and show and write what it found."""
    from gateway.lab.bench.bars import draw
    from gateway.lab.bench.runner import run
    from gateway.lab.bench.table import render

    report = with_progress(lambda progress: run(suite, sizes, progress))
    if output is not None:
        write(output, json.dumps(report.to_json(), indent=2) + "\n")
    if svg is not None:
        write(svg, draw(report))
    if as_json:
        print_json(report.to_json())
    else:
        console = Console()
        # Rich takes 80 columns where there is no terminal, which would break every cell.
        if not console.is_terminal:
            console.width = LOG_COLUMNS
        console.print(render(report))


def deliver(
    found: Mapping[str, object], lines: Iterable[str], as_json: bool, output: Path | None
) -> None:
    """Show what was found, as JSON or in ``lines``, and write the JSON to a file besides."""
    if output is not None:
        write(output, json.dumps(found, indent=2) + "\n")
    if as_json:
        print_json(found)
    else:
        click.echo("\n".join(lines))


def with_progress(work: Callable[[Callable[[str, float], None]], T]) -> T:
    """What ``work`` returns; a bar on standard error shows how far it is."""
    columns = (TextColumn("{task.description:<50}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=1.0)
        return work(lambda what, part: progress.update(bar, description=what, completed=part))
