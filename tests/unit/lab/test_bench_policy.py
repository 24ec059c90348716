"""``gateway bench policy``, with lists that take no time."""

from __future__ import annotations

import json

from click.testing import CliRunner

from gateway.cli.main import cli


def test_every_figure_is_there() -> None:
    chosen = ["--rules", "20", "--names", "2000", "--prefixes", "1500"]
    done = CliRunner().invoke(cli, ["bench", "policy", *chosen, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["amounts"] == {"rules": 20, "names": 2000, "prefixes": 1500}
    figures = {each["title"]: each["value"] for each in found["figures"]}
    decisions = [title for title in figures if title.startswith("decision: ")]
    assert len(decisions) == 5
    # Memory may seem to shrink, where the processes give something back meanwhile.
    assert all(value > 0 for title, value in figures.items() if "memory" not in title)
