"""Rule sets: the shipped ones, the owner's, and what is said of bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gateway.config.load import load
from gateway.config.shipped import shipped_directory, shipped_names
from gateway.errors import ConfigError
from gateway.policy.prefixes import address_number
from gateway.policy.rulesets import RuleSetData
from gateway.policy.sets.formats import ListSource, read_list
from gateway.rulesets.store import load_rule_sets


def loaded(directory: Path, rule_sets: str, rules: str = "") -> dict[str, RuleSetData]:
    path = directory / "gateway.yaml"
    path.write_text(
        f"lan: {{interfaces: eth1}}\nrule_sets:\n{rule_sets}\nrules:\n{rules}  - {{to: direct}}\n"
    )
    return load_rule_sets(load(path))


@pytest.mark.parametrize("name", sorted(shipped_names()))
def test_every_shipped_set_loads_and_says_where_it_comes_from(name: str) -> None:
    path = shipped_directory() / f"{name}.yaml"
    data = RuleSetData.of(name, read_list(ListSource(path)))
    assert all(data.about)
    assert data.skipped == ()
    text = path.read_text()
    assert text.startswith(f"name: {name}\n")
    entries = yaml.safe_load(text)["entries"]
    assert len(set(entries)) == len(entries)
    assert len(data.names) + len(data.networks) > 0


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("private", ["192.168.1.1", "100.64.0.1", "fd00::1", "ff02::1"], ["8.8.8.8", "2600::1"]),
        ("bogons", ["198.51.100.1", "240.0.0.1", "2001:db8::1"], ["192.88.99.1", "2600::1"]),
        ("lan-discovery", ["224.0.0.251", "ff02::fb"], ["224.0.0.1", "192.168.1.1"]),
        ("public-dns", ["1.1.1.1", "2620:fe::fe"], ["1.1.1.4", "192.168.1.1"]),
    ],
)
def test_what_addresses_are_in_the_shipped_sets(
    name: str, inside: list[str], outside: list[str]
) -> None:
    path = shipped_directory() / f"{name}.yaml"
    prefixes = RuleSetData.of(name, read_list(ListSource(path))).prefixes
    assert [host for host in inside if not prefixes.contains(address_number(host))] == []
    assert [host for host in outside if prefixes.contains(address_number(host))] == []


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("local-names", ["printer.local", "5.1.168.192.in-addr.arpa"], ["a.example", "arpa"]),
        ("encrypted-dns", ["dns.google", "abc.dns.nextdns.io"], ["www.google.com"]),
        ("private-relay", ["mask.icloud.com"], ["icloud.com"]),
        ("captive-portal", ["captive.apple.com"], ["apple.com"]),
        ("stun", ["stun.l.google.com"], ["google.com"]),
        ("time-servers", ["2.debian.pool.ntp.org"], ["ntp.org"]),
    ],
)
def test_what_names_are_in_the_shipped_sets(
    name: str, inside: list[str], outside: list[str]
) -> None:
    names = RuleSetData.of(name, read_list(ListSource(shipped_directory() / f"{name}.yaml"))).names
    assert [each for each in inside if not names.matches(each)] == []
    assert [each for each in outside if names.matches(each)] == []


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
    assert sets["listed"].about.source == "me"
    assert len(sets["bogons"].networks) > 10


def test_only_sets_in_use_are_loaded(tmp_path: Path) -> None:
    assert loaded(tmp_path, "  a: {type: inline, entries: 192.0.2.1}\n").keys() == {"a"}


def test_all_problems_of_all_files_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("what is this\n")
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
    assert sorted(found) == [
        ("gateway.yaml", 3, 25, "plain.txt"),
        ("gateway.yaml", 5, 25, "none.txt"),
        ("list.yaml", 2, 5, "10.0.0.0/40"),
        ("list.yaml", 3, 1, "entry"),
        ("secret.yaml", 1, 10, ""),
    ]
    messages = {Path(problem.value).name: problem.message for problem in caught.value.problems}
    assert "No such file" in messages["none.txt"]
    assert "1 × not a domain name (line 1: 'what is this')" in messages["plain.txt"]
