"""``gateway rules``: look into rule sets, convert lists, fetch those that are fetched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from gateway.cli.options import config_option, json_option
from gateway.cli.show import columns, print_json, span, write
from gateway.config.domains import canonical_name
from gateway.config.load import load
from gateway.config.schema import FileRuleSet, InlineRuleSet, ListFormat, UrlRuleSet
from gateway.config.shipped import shipped_names
from gateway.errors import GatewayError
from gateway.policy.prefixes import address_number
from gateway.policy.rulesets import RuleSetData
from gateway.policy.sets.formats import ListSource, read_list
from gateway.policy.sets.writers import WRITERS
from gateway.rulesets.fetch import Copy
from gateway.rulesets.store import RuleSetStore
from gateway.rulesets.updates import fetched_sets, update

#: So many entries of a set are shown unless all are asked for.
SHOWN_ENTRIES = 20


@click.group()
def rules() -> None:
    """Look into the rule sets of the configuration, and into lists of others.

    \b
    Examples:
      gateway rules list
      gateway rules test ads www.ads.example
      gateway rules convert geosite.dat cn.yaml --select cn
    """


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A bar for each set that takes long; on standard error, and for people only."""
    shown = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    tasks: dict[str, Any] = {}
    bars = Progress(*shown, TimeElapsedColumn(), console=Console(stderr=True))

    def told(name: str, done: float) -> None:
        if name not in tasks:
            bars.start()
            tasks[name] = bars.add_task(name, total=1.0)
        bars.update(tasks[name], completed=done)

    try:
        yield told
    finally:
        if tasks:  # to end what never began would print a line, too
            bars.stop()


def _names(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Completion: the sets that there are; none where the configuration cannot be read."""
    try:
        written = set(load(Path(ctx.params["config"])).config.rule_sets)
    except (GatewayError, KeyError):
        written = set()
    return sorted(name for name in written | shipped_names() if name.startswith(incomplete))


def _open(config: Path, progress: Callable[[str, float], None]) -> RuleSetStore:
    return RuleSetStore(load(config), progress)


def _one(store: RuleSetStore, name: str) -> RuleSetData:
    if name not in store.config.rule_sets and name not in shipped_names():
        known = ", ".join(sorted({*store.config.rule_sets, *shipped_names()}))
        raise GatewayError(f"no rule set {name}", f"there are {known}")
    return store.load_one(name)


@rules.command("list")
@config_option
@json_option
def list_(config: Path, as_json: bool) -> None:
    """List the rule sets that there are: what is in them, and where they come from.

    A set that cannot be read is listed with the reason, and the exit status is then 1.

    \b
    Example:
      gateway rules list
    """
    with _progress() as progress:
        store = _open(config, progress)
        found = [
            _listed(store, name) for name in sorted({*store.config.rule_sets, *shipped_names()})
        ]
    if as_json:
        print_json({"rule_sets": found})
    else:
        rows = [["NAME", "FROM", "FORMAT", "NAMES", "PREFIXES", "STATE"]]
        rows += [[str(each[key]) for key in _COLUMNS] for each in found]
        click.echo(columns(rows))
    if any(each["problem"] for each in found):
        click.get_current_context().exit(1)


_COLUMNS = ("name", "from", "format", "names", "prefixes", "state")


def _listed(store: RuleSetStore, name: str) -> dict[str, object]:
    origin, state = _origin(store, name)
    listed: dict[str, object] = {"name": name, "from": origin}
    try:
        data = store.load_one(name)
    except GatewayError as error:
        problem = str(error)
        return {
            **listed, "format": "", "names": 0, "prefixes": 0, "skipped": [],
            "state": f"unreadable: {problem}", "problem": problem,
        }  # fmt: skip
    skipped = [each._asdict() for each in data.skipped]
    if skipped:
        state += ("; " if state else "") + f"without {', '.join(map(str, data.skipped))}"
    return {
        **listed, "format": data.format, "names": len(data.names),
        "prefixes": sum(1 for _ in data.prefixes.networks()), "skipped": skipped, "state": state,
        "problem": "",
    }  # fmt: skip


def _origin(store: RuleSetStore, name: str) -> tuple[str, str]:
    """Where a set comes from, and how old its copy is."""
    settings = store.config.rule_sets.get(name)
    if isinstance(settings, InlineRuleSet):
        return "configuration", ""
    if isinstance(settings, FileRuleSet):
        return settings.path, ""
    if isinstance(settings, UrlRuleSet):
        copy = Copy.beside(store.source(name).path)
        url = settings.url.partition("?")[0]  # behind it there may be a secret
        if not copy.fetched:
            return url, "never fetched"
        return url, f"fetched {span(max(time.time() - copy.fetched, 0))} ago"
    return "shipped", ""


@rules.command()
@click.argument("name", shell_complete=_names)
@config_option
@click.option("--all", "everything", is_flag=True, help="Every entry, not the first few.")
@json_option
def show(name: str, config: Path, everything: bool, as_json: bool) -> None:
    """Show what a rule set has in it, and what it had to leave out.

    \b
    Example:
      gateway rules show private
    """
    with _progress() as progress:
        store = _open(config, progress)
        data = _one(store, name)
    entries = WRITERS["text"](data)
    shown = list(entries if everything else islice(entries, SHOWN_ENTRIES))
    origin, state = _origin(store, name)
    if as_json:
        print_json(
            {
                "name": name, "from": origin, "state": state, "format": data.format,
                **data.about._asdict(), "names": len(data.names),
                "skipped": [each._asdict() for each in data.skipped], "entries": shown,
            }
        )  # fmt: skip
        return
    head = [["from", origin], ["state", state], ["format", data.format]]
    head += [[key, value] for key, value in data.about._asdict().items()]
    head += [["names", str(len(data.names))]]
    head += [["prefixes", str(sum(1 for _ in data.prefixes.networks()))]]
    head += [["left out", str(each)] for each in data.skipped]
    click.echo(columns([row for row in head if row[1]]))
    click.echo("\n".join(["", *shown]))
    if next(entries, None) is not None:
        click.echo("… (--all shows the rest)")


@rules.command()
@click.argument("name", shell_complete=_names)
@click.argument("value")
@config_option
@json_option
@click.pass_context
def test(ctx: click.Context, name: str, value: str, config: Path, as_json: bool) -> None:
    """Say whether an address or a domain name is in a rule set, and by which entry.

    Exits with 0 when it is, with 1 when it is not.

    \b
    Examples:
      gateway rules test private 192.168.1.5
      gateway rules test ads www.ads.example
    """
    with _progress() as progress:
        data = _one(_open(config, progress), name)
    entry = _entry_for(data, value)
    if as_json:
        print_json({"name": name, "value": value, "in": entry is not None, "entry": entry})
    else:
        click.echo(f"{value} is in {name}: {entry}" if entry else f"{value} is not in {name}")
    ctx.exit(0 if entry else 1)


def _entry_for(data: RuleSetData, value: str) -> str | None:
    try:
        address = ip_address(value)
    except ValueError:
        name = canonical_name(value)
        if name is None:
            raise GatewayError(
                f"{value} is neither an address nor a domain name", "give one of them"
            ) from None
        pattern = data.names.match(name)
        return None if pattern is None else str(pattern)
    if not data.prefixes.contains(address_number(str(address))):
        return None
    return next(str(network) for network in data.prefixes.networks() if address in network)


@rules.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("target", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--format",
    "form",
    type=click.Choice(get_args(ListFormat)),
    default="auto",
    show_default=True,
    help="How SOURCE is written.",
)
@click.option("--select", default="", help="Which list of a file that has many, as `select:`.")
@click.option(
    "--to",
    type=click.Choice(sorted(WRITERS)),
    help="How TARGET is written; told by its name without this (.yaml, else text).",
)
def convert(source: Path, target: Path, form: str, select: str, to: str | None) -> None:
    """Read a list of any format and write it as another; TARGET - is standard output.

    Prefixes are written as the shortest list that says the same.

    \b
    Examples:
      gateway rules convert geosite.dat ads.yaml --select category-ads
      gateway rules convert hosts.txt - --to clash
    """
    with _progress() as progress:
        contents = read_list(
            ListSource(source, form, select), lambda done: progress(source.name, done)
        )
        data = RuleSetData.of(source.stem, contents)
    written = to or ("yaml" if target.suffix in (".yaml", ".yml") else "text")
    text = "".join(f"{line}\n" for line in WRITERS[written](data))
    if str(target) == "-":
        click.echo(text, nl=False)
    else:
        write(target, text)
    kept = f"{source}: {contents.format}, {len(data.names)} names"
    click.echo(f"{kept}, {sum(1 for _ in data.prefixes.networks())} prefixes", err=True)
    for each in data.skipped:
        click.echo(f"left out: {each}", err=True)


@rules.command("update")
@click.argument("names", nargs=-1, shell_complete=_names)
@config_option
@json_option
@click.pass_context
def update_(ctx: click.Context, names: tuple[str, ...], config: Path, as_json: bool) -> None:
    """Fetch rule sets now (all that are fetched, or those of the NAMES).

    Through the outbound that each names, as the running gateway does; that one takes the new
    lists by itself. A list that did not change is not sent again. Needs root.

    \b
    Examples:
      gateway rules update
      gateway rules update ads
    """
    from gateway.assembly import assemble, findings
    from gateway.errands import connector
    from gateway.kernel.reactor import run
    from gateway.wiring import blueprint

    assembly = assemble(config)
    store = assembly.store
    known = fetched_sets(store)
    for name in names:
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise GatewayError(f"{name} is no set that is fetched", f"those are: {listed}")
    plan = blueprint(assembly, findings(assembly))
    results: dict[str, str] = {}

    async def fetch_one(name: str, progress: Callable[[str, float], None]) -> None:
        connect = connector(plan, assembly.config, known[name].via)

        def received(got: int, whole: int) -> None:
            progress(name, got / whole if whole else 0)

        try:
            changed = await update(name, store, connect, received)
        except GatewayError as error:
            results[name] = f"failed: {error}" + (f" ({error.hint})" if error.hint else "")
        else:
            results[name] = "fetched" if changed else "has not changed"

    async def fetch_all() -> None:
        with _progress() as progress:
            await asyncio.gather(*(fetch_one(name, progress) for name in names or known))

    run(fetch_all())
    if as_json:
        print_json({"results": results})
    else:
        lines = [f"{name}: {result}" for name, result in sorted(results.items())]
        click.echo("\n".join(lines) or "no rule set of the configuration is fetched")
    if any(result.startswith("failed") for result in results.values()):
        ctx.exit(1)
