"""The README says what the program does."""

from __future__ import annotations

from pathlib import Path

import click

from gateway.cli.main import cli
from gateway.config.reference import reference

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
