"""The command as a whole: its commands, help texts, exit statuses and import cost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gateway.cli import main as cli_main
from gateway.cli.main import COMMANDS, cli
from gateway.errors import CapabilityError, ConfigError, Problem
from gateway.version import VERSION

ROOT = Path(__file__).resolve().parents[3]


def test_help_lists_every_command_with_its_summary() -> None:
    output = CliRunner().invoke(cli, ["--help"]).output
    for name, (_, summary) in COMMANDS.items():
        assert name in output
        assert summary in " ".join(output.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_teaches(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"gateway {name}" in result.output
    help_text = cli.get_command(click.Context(cli), name).help  # type: ignore[union-attr]
    assert help_text is not None
    assert len(help_text.split()) > 20


def _subcommands() -> dict[str, click.Command]:
    context = click.Context(cli)
    commands = {name: cli.get_command(context, name) for name in COMMANDS}
    found: dict[str, click.Command] = {}
    for name, command in commands.items():
        assert command is not None
        found[name] = command
        if isinstance(command, click.Group):
            found |= {f"{name} {each}": its for each, its in command.commands.items()}
    return found


@pytest.mark.parametrize(("name", "command"), _subcommands().items())
def test_each_option_is_explained_and_each_command_has_an_example(
    name: str, command: click.Command
) -> None:
    assert f"gateway {name}" in (command.help or "")
    options = [each for each in command.params if isinstance(each, click.Option)]
    assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_named_as_listed(name: str) -> None:
    module, _, attribute = COMMANDS[name][0].partition(":")
    assert getattr(import_module(module), attribute).name == name


@pytest.mark.parametrize(
    "name",
    [
        "check", "plan", "status", "flows", "groups", "select", "reload", "explain", "doctor",
        "version", "lab loops", "rules list", "rules show", "rules test", "rules update",
    ],
)  # fmt: skip
def test_commands_that_report_do_so_in_json(name: str) -> None:
    assert "--json" in CliRunner().invoke(cli, [*name.split(), "--help"]).output


def test_unknown_command() -> None:
    result = CliRunner().invoke(cli, ["statsu"])
    assert result.exit_code == 2
    assert "No such command 'statsu'. Did you mean status?" in result.output


def test_version() -> None:
    assert CliRunner().invoke(cli, ["version"]).output.startswith(f"gateway {VERSION} ")
    assert json.loads(CliRunner().invoke(cli, ["version", "--json"]).output)["gateway"] == VERSION


def test_version_is_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CapabilityError("no nft", "apt-get install nftables"), 1),
        (ConfigError((Problem("g.yaml", 3, 1, "lna", "unknown key", cure="`lan`?"),)), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_are_sentences_with_a_status(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int
) -> None:
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr("gateway.cli.about.version", failing)
    result = CliRunner().invoke(cli, ["version"])
    assert result.exit_code == status
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    if not isinstance(error, KeyboardInterrupt):
        assert f"error: {error}" in result.stderr
        assert ("hint: " in result.stderr) == bool(getattr(error, "hint", ""))


HEAVY = ("aiohttp", "asyncio", "iptc", "pydantic", "pyroute2", "rich", "yaml")


@pytest.mark.parametrize(
    "arguments", [["version"], ["--help"], ["status", "--help"], ["flows"], ["reload"]]
)
def test_small_commands_load_no_heavy_library(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from gateway.cli.main import cli\n"
        "try:\n"
        "    cli(sys.argv[1:])\n"
        "except SystemExit:\n"
        "    pass\n"
        f"print('heavy:', *(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={"GATEWAY_RUN_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert found.stdout.splitlines()[-1] == "heavy:"


def test_python_dash_m_gateway() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "gateway", "version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert VERSION in found.stdout


def test_every_command_module_is_in_the_table() -> None:
    modules = {module.partition(":")[0].rpartition(".")[2] for module, _ in COMMANDS.values()}
    with_commands = {
        path.stem
        for path in Path(cli_main.__file__).parent.glob("*.py")
        if re.search(r"^@click\.(command|group)\((\)|context)", path.read_text(), re.MULTILINE)
    }
    assert modules == with_commands


def test_the_matrix_of_loops_ends_with_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 where all is as it should be, 1 where it is not; names and options are passed on."""
    asked: list[object] = []

    def show(names: tuple[str, ...], *, as_json: bool, details: bool) -> bool:
        asked.append((names, as_json, details))
        return "halves" in names

    monkeypatch.setattr("gateway.lab.loops_table.show", show)
    run = CliRunner().invoke
    assert run(cli, ["lab", "loops", "halves", "--details"]).exit_code == 0
    assert run(cli, ["lab", "loops", "--json"]).exit_code == 1
    assert asked == [(("halves",), False, True), ((), True, False)]
