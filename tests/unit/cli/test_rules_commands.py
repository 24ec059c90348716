"""``gateway rules``: what is in sets, and lists converted."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.main import cli
from gateway.config.domains import DomainKind, DomainPattern
from gateway.policy.rulesets import About, RuleSetData
from gateway.policy.sets.entries import Entries
from gateway.policy.sets.formats import Contents, ListSource, read_list
from gateway.policy.sets.writers import WRITERS

CONFIG = """
lan: {interfaces: eth1}
state_dir: state
rule_sets:
  mine: {type: inline, entries: [192.0.2.0/24, +.a.example, "keyword:ads"]}
  listed: {type: file, path: list.txt}
  far: {type: url, url: "http://lists.example/a"}
rules: [{to: direct}]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text(CONFIG)
    (tmp_path / "list.txt").write_text("".join(f"n{i}.example\n" for i in range(50)) + "a b\n")
    return path


def rules(config: Path | None, *arguments: str | Path) -> Result:
    options = [] if config is None else ["--config", str(config)]
    return CliRunner().invoke(cli, ["rules", *map(str, arguments), *options])


def listed(config: Path) -> dict[str, Any]:
    result = rules(config, "list", "--json")
    return {each["name"]: each for each in json.loads(result.stdout)["rule_sets"]}


def test_list(config: Path) -> None:
    sets = listed(config)
    assert (sets["mine"]["names"], sets["mine"]["prefixes"]) == (2, 1)
    assert sets["listed"]["skipped"] == [
        {"kind": "not a domain name", "entries": 1, "line": 51, "text": "a b"}
    ]
    assert (sets["far"]["names"], sets["far"]["state"]) == (0, "never fetched")
    assert sets["private"]["from"] == "shipped"
    text = rules(config, "list")
    assert text.exit_code == 0
    assert "never fetched" in text.stdout


def test_list_says_which_set_cannot_be_read(config: Path) -> None:
    (config.parent / "list.txt").unlink()
    result = rules(config, "list")
    assert result.exit_code == 1
    assert "unreadable" in result.stdout
    assert "private" in result.stdout
    assert "No such file" in listed(config)["listed"]["problem"]


def test_show(config: Path) -> None:
    short = rules(config, "show", "listed").stdout
    assert "left out  1 × not a domain name (line 51: 'a b')" in short
    assert "--all shows the rest" in short
    every = rules(config, "show", "listed", "--all").stdout
    assert "n49.example" in every
    shown = json.loads(rules(config, "show", "private", "--json").stdout)
    assert "10.0.0.0/8" in shown["entries"]
    assert shown["licence"].startswith("CC0")


@pytest.mark.parametrize(
    ("name", "value", "entry"),
    [
        ("mine", "192.0.2.7", "192.0.2.0/24"),
        ("mine", "WWW.A.example.", "+.a.example"),
        ("mine", "myads.example", "keyword:ads"),
        ("mine", "192.0.3.7", None),
        ("mine", "b.example", None),
        ("private", "fe80::1", "fe80::/10"),
    ],
)
def test_test(config: Path, name: str, value: str, entry: str | None) -> None:
    result = rules(config, "test", name, value)
    assert result.exit_code == (0 if entry else 1)
    assert result.stdout == (
        f"{value} is in {name}: {entry}\n" if entry else f"{value} is not in {name}\n"
    )
    answer = json.loads(rules(config, "test", name, value, "--json").stdout)
    assert answer == {"name": name, "value": value, "in": entry is not None, "entry": entry}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "nothing"), "there are bogons, captive-portal"),
        (("test", "mine", "a b"), "neither an address nor a domain name"),
        (("update", "mine"), "those are: far"),
        (("convert", "none.txt", "-"), "does not exist"),
        (("convert", "/etc/hosts", "-", "--format", "host"), "'hosts'"),
    ],
)
def test_what_cannot_be_done_says_why(config: Path, arguments: tuple[str, ...], said: str) -> None:
    result = rules(None if arguments[0] == "convert" else config, *arguments)
    assert result.exit_code in (1, 2)
    assert said in result.stderr


def test_what_takes_no_time_shows_no_progress(config: Path) -> None:
    result = rules(config, "test", "mine", "192.0.2.1")
    assert (result.exit_code, result.stderr) == (0, "")


def test_convert(config: Path, tmp_path: Path) -> None:
    source, target = config.parent / "list.txt", tmp_path / "out.yaml"
    result = rules(None, "convert", source, target)
    assert result.exit_code == 0
    assert "left out: 1 × not a domain name" in result.stderr
    contents = read_list(ListSource(target))
    assert (contents.format, len(contents.entries)) == ("yaml", 50)
    shown = rules(None, "convert", source, "-", "--to", "clash").stdout
    assert shown.startswith("payload:\n")
    assert '  - "DOMAIN,n0.example"\n' in shown


def test_names_are_completed(config: Path) -> None:
    complete = ShellComplete(cli, {}, "gateway", "_GATEWAY_COMPLETE")
    found = complete.get_completions(["rules", "show", "--config", str(config)], "li")
    assert [item.value for item in found] == ["listed"]
    found = complete.get_completions(["rules", "show", "--config", "/none"], "bog")
    assert [item.value for item in found] == ["bogons"]


names = st.lists(st.sampled_from(["a", "b", "www"]), min_size=1, max_size=3).map(".".join)
patterns = st.builds(DomainPattern, st.sampled_from(list(DomainKind)[:5]), names)
hosts = st.ip_addresses().filter(lambda host: getattr(host, "ipv4_mapped", None) is None)


@given(st.lists(patterns), st.lists(hosts, min_size=1), st.sampled_from(sorted(WRITERS)))
def test_what_is_written_is_read_again(
    wanted: list[DomainPattern], addresses: list[object], form: str
) -> None:
    entries = Entries.of(map(str, wanted))
    for address in addresses:
        entries.network(str(address))
    about = About("what: 'it' is", "me", "CC0")
    data = RuleSetData.of("a", Contents("text", entries, about))
    with TemporaryDirectory() as directory:
        path = Path(directory) / f"written.{'txt' if form == 'text' else 'yaml'}"
        path.write_text("".join(f"{line}\n" for line in WRITERS[form](data)))
        again = RuleSetData.of("a", read_list(ListSource(path)))
    assert again.networks == data.networks
    assert len(again.names) == len(data.names)
    assert again.skipped == ()
    assert again.about == (about if form == "yaml" else About())
    for name in ("a", "www.a", "www.b.a", "b.b", "www.www.www.a", "c"):
        assert again.names.matches(name) == data.names.matches(name), name
