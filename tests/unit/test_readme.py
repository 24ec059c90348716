"""The README says what the program does."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import click
import yaml

from gateway.cli.main import cli
from gateway.config.check import check
from gateway.config.load import load
from gateway.config.outbounds import Socks5Outbound
from gateway.config.reference import reference
from gateway.config.schema import Config
from gateway.policy.assertions import failures
from gateway.policy.compile import compile_policy

README = Path(__file__).parents[2] / "README.md"


def test_the_reference_of_keys_is_that_of_the_schema() -> None:
    marker = "<!-- reference: made from the schema; a test compares -->\n\n"
    text = README.read_text()
    assert marker in text
    assert text.partition(marker)[2] == reference()


def test_every_command_is_in_the_table() -> None:
    table = README.read_text().partition("## Commands")[2].partition("\n## ")[0]
    for name in cli.list_commands(click.Context(cli)):
        assert f"`{name}`" in table


def test_the_configuration_of_a_real_gateway_is_one(tmp_path: Path) -> None:
    example = README.read_text().partition("## On a real gateway")[2].partition("```yaml\n")[2]
    file = tmp_path / "gateway.yaml"
    file.write_text(dedent(example.partition("```")[0]))
    (tmp_path / "home.password").write_text("secret\n")
    home = load(file).config.outbounds["home"]
    assert isinstance(home, Socks5Outbound)
    assert home.password is not None
    assert home.password.get_secret_value() == "secret"


def test_the_rules_shown_do_what_their_assertion_says() -> None:
    example = README.read_text().partition("### Rules\n")[2].partition("```yaml\n")[2]
    data = yaml.safe_load(example.partition("```")[0])
    data["lan"] |= {"interfaces": "eth1", "subnets": {"kids": "192.168.20.0/24"}}
    data |= {"outbounds": {"home": {"type": "socks5", "server": "203.0.113.5"}}}
    config = Config.model_validate(data | {"geo": {"country": "country.mmdb"}})
    assert check(config, frozenset()) == ()
    assert list(failures(config, compile_policy(config, {}))) == []
    assert config.assertions
