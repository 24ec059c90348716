"""Rule sets: the shipped ones, the owner's, and what is said of bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.load import load
from gateway.config.shipped import shipped_directory, shipped_names
from gateway.errors import ConfigError
from gateway.policy.prefixes import PrefixSet
from gateway.policy.rulesets import RuleSetData, load_rule_sets, parse_rule_set


def loaded(directory: Path, rule_sets: str, rules: str = "") -> dict[str, RuleSetData]:
    path = directory / "gateway.yaml"
    path.write_text(
        f"lan: {{interfaces: eth1}}\nrule_sets:\n{rule_sets}\nrules:\n{rules}  - {{to: direct}}\n"
    )
    return load_rule_sets(load(path))


@pytest.mark.parametrize("name", sorted(shipped_names()))
def test_every_shipped_set_loads_and_says_where_it_comes_from(name: str) -> None:
    path = shipped_directory() / f"{name}.yaml"
    data = parse_rule_set(path.read_text(), name, path)
    assert data.name == name
    assert data.description
    assert data.source
    assert data.licence
    assert {network.version for network in data.networks} == {4, 6}
    assert len(set(data.networks)) == len(data.networks)


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("private", ["192.168.1.1", "100.64.0.1", "fd00::1", "ff02::1"], ["8.8.8.8", "2600::1"]),
        ("bogons", ["198.51.100.1", "240.0.0.1", "2001:db8::1"], ["192.88.99.1", "2600::1"]),
        ("lan-discovery", ["224.0.0.251", "ff02::fb"], ["224.0.0.1", "192.168.1.1"]),
        ("public-dns", ["1.1.1.1", "2620:fe::fe"], ["1.1.1.4", "192.168.1.1"]),
    ],
)
def test_what_is_in_the_shipped_sets(name: str, inside: list[str], outside: list[str]) -> None:
    path = shipped_directory() / f"{name}.yaml"
    prefixes = PrefixSet.from_networks(parse_rule_set(path.read_text(), name, path).networks)
    assert [host for host in inside if not prefixes.contains(host)] == []
    assert [host for host in outside if prefixes.contains(host)] == []


def test_sets_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("# all mine\n10.0.0.0/8 # ten\n\n  fd00::1\n")
    (tmp_path / "list.yaml").write_text("entries: [192.0.2.0/24]\nsource: me\n")
    sets = loaded(
        tmp_path,
        "  plain: {type: file, path: plain.txt}\n"
        "  listed: {type: file, path: list.yaml}\n"
        "  inline: {type: inline, entries: [203.0.113.7]}\n"
        "  private: {type: inline, entries: 192.0.2.1}\n",
        "  - {rule_set: [bogons, private], to: direct}\n",
    )
    assert {name: len(data.networks) for name, data in sets.items() if name != "bogons"} == {
        "plain": 2, "listed": 1, "inline": 1, "private": 1
    }  # fmt: skip
    assert sets["listed"].source == "me"
    assert len(sets["bogons"].networks) > 10


def test_only_sets_in_use_are_loaded(tmp_path: Path) -> None:
    assert loaded(tmp_path, "  a: {type: inline, entries: 192.0.2.1}\n").keys() == {"a"}


def test_all_problems_of_all_files_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("10.0.0.0/8\n  10.0.0.1/8\nexample.com # no\n")
    (tmp_path / "list.yaml").write_text("entries:\n  - 10.0.0.0/40\nentry: x\n")
    (tmp_path / "secret.yaml").write_text("entries: !env HOME\n")
    with pytest.raises(ConfigError) as caught:
        loaded(
            tmp_path,
            "  a: {type: file, path: plain.txt}\n"
            "  b: {type: file, path: list.yaml}\n"
            "  c: {type: file, path: none.txt}\n"
            "  d: {type: file, path: secret.yaml}\n",
        )
    found = [(Path(p.file).name, p.line, p.column, p.value) for p in caught.value.problems]
    assert found == [
        ("plain.txt", 2, 3, "10.0.0.1/8"),
        ("plain.txt", 3, 1, "example.com"),
        ("list.yaml", 2, 5, "10.0.0.0/40"),
        ("list.yaml", 3, 1, "entry"),
        ("gateway.yaml", 5, 25, "none.txt"),
        ("secret.yaml", 1, 10, ""),
    ]
    assert caught.value.problems[0].cure == "did you mean 10.0.0.0/8?"
    assert "does not exist" in caught.value.problems[4].message


@given(st.text(), st.sampled_from(["a.yaml", "a.txt"]))
def test_any_text(text: str, name: str) -> None:
    problems = 1
    try:
        parse_rule_set(text, "a", Path(name))
    except ConfigError as error:
        problems = len(error.problems)
    assert problems


@given(st.lists(st.ip_addresses()), st.sampled_from(["", "  ", " # why"]))
def test_addresses_written_one_a_line_are_read(hosts: list[object], after: str) -> None:
    text = "".join(f"{host}{after}\n" for host in hosts)
    mapped = [host for host in hosts if getattr(host, "ipv4_mapped", None)]
    if not mapped:
        data = parse_rule_set(text, "a", Path("a.txt"))
        assert [network.network_address for network in data.networks] == hosts
