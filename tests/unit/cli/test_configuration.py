"""``init``, ``check``, ``schema`` and the lab's commands, without a kernel."""

from __future__ import annotations

import json
import stat
from ipaddress import ip_interface
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner, Result

from gateway.cli.main import cli
from gateway.plan.host import DefaultRoute, HostFacts, Interface

FACTS = HostFacts(
    interfaces=(
        Interface("wan0", 1, up=True, addresses=(ip_interface("203.0.113.2/24"),)),
        Interface("lan0", 2, up=True, addresses=(ip_interface("192.168.7.1/24"),)),
    ),
    default_routes=(DefaultRoute("ipv4", "wan0", "203.0.113.1"),),
)


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.cli.configuration.probe_host", lambda _: FACTS)


def gateway(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_init_writes_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "gateway.yaml"
    result = gateway("init", "--output", path)
    assert result.exit_code == 0, result.output
    assert "lan0" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "gateway check" in result.output


def test_init_does_not_overwrite_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("mine\n")
    result = gateway("init", "-o", path)
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert path.read_text() == "mine\n"
    assert gateway("init", "-o", path, "--force").exit_code == 0
    assert "lan0" in path.read_text()


def test_init_to_standard_output() -> None:
    assert yaml.safe_load(gateway("init", "-o", "-").stdout)["lan"]["interfaces"] == ["lan0"]


def test_init_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = gateway("init", "-o", tmp_path / "file" / "gateway.yaml")
    assert result.exit_code == 1
    assert "cannot write" in result.stderr


BAD = "lan: {interfaces: [lan0]}\nrules: [{to: hoem}]\ninbound:\n  prot: 1\n"


@pytest.mark.parametrize("command", ["check", "plan", "up", "run"])
def test_a_bad_file_is_told_in_full_and_exits_with_2(command: str, tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(BAD)
    extra = [] if command == "check" else ["--run-dir", tmp_path / "run"]
    result = gateway(command, "--config", path, *extra)
    assert result.exit_code == 2
    assert f"{path}:2:" in result.stderr
    assert f"{path}:4:3: inbound.prot: unknown key" in result.stderr
    assert "Traceback" not in result.stderr


def test_check_of_a_bad_file_as_json(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(BAD)
    result = gateway("check", "--config", path, "--json")
    assert result.exit_code == 2
    found = json.loads(result.stdout)
    assert found["ok"] is False
    assert [(problem["line"], bool(problem["cure"])) for problem in found["problems"]] == [
        (2, True),
        (4, True),
    ]


def test_check_without_a_file(tmp_path: Path) -> None:
    result = gateway("check", "--config", tmp_path / "none.yaml")
    assert result.exit_code == 2
    assert "does not exist" in result.stderr


def test_schema_describes_what_init_writes() -> None:
    schema = json.loads(gateway("schema").stdout)
    jsonschema.validate(yaml.safe_load(gateway("init", "-o", "-").stdout), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"rules": "x"}, schema)


def test_demo_is_told_what_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, bool]] = []
    monkeypatch.setattr("gateway.lab.demo.demo", lambda **options: calls.append(options))
    assert gateway("demo", "--keep").exit_code == 0
    assert gateway("demo", "--remove").exit_code == 0
    assert calls == [{"keep": True, "remove": False}, {"keep": False, "remove": True}]


def test_test_runs_the_launcher_of_the_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[Path, list[str]]] = []
    monkeypatch.setattr("gateway.cli.lab.os.execv", lambda *call: calls.append(call))
    monkeypatch.setattr("gateway.cli.lab._CHECKOUT", tmp_path)
    result = gateway("test", "-k", "socks5")
    assert result.exit_code == 1
    assert "./gw test" in result.stderr
    launcher = tmp_path / "gw"
    launcher.touch()
    assert gateway("test", "-k", "socks5").exit_code == 0
    assert calls == [(launcher, [str(launcher), "test", "-k", "socks5"])]
