"""Sets on a machine: compiled once, made anew when damaged, read again when they change."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from gateway.config.load import parse
from gateway.errors import ConfigError, GatewayError
from gateway.policy.prefixes import address_number
from gateway.policy.sets.formats import ListSource
from gateway.rulesets import store as store_module
from gateway.rulesets.build import Compiler
from gateway.rulesets.store import RuleSetStore

BIG = "".join(f"n{number}.example\n" for number in range(20_000))


def open_store(directory: Path, rule_sets: str) -> RuleSetStore:
    text = (
        "lan: {interfaces: eth1}\nstate_dir: state\nrule_sets:\n"
        f"{rule_sets}\nrules: [{{to: direct}}]\n"
    )
    loaded = parse(text, str(directory / "gateway.yaml"), resolve_secret=lambda *_: "")
    return RuleSetStore(loaded)


def compiled(directory: Path) -> list[Path]:
    return sorted((directory / "state" / "sets" / "compiled").glob("*"))


@pytest.fixture
def big(tmp_path: Path) -> Path:
    (tmp_path / "big.txt").write_text(BIG)
    assert len(BIG) > store_module.SMALL_BYTES
    return tmp_path


FILE = "  big: {type: file, path: big.txt}"


def test_a_large_list_is_compiled_once(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_store(big, FILE).load()["big"]
    assert first.names.matches("n19999.example")
    assert len(compiled(big)) == 1
    monkeypatch.setattr(Compiler, "compile", None)
    again = open_store(big, FILE).load()["big"]
    assert len(again) == len(first) == 20_000


def test_a_damaged_compiled_file_is_made_anew(big: Path) -> None:
    open_store(big, FILE).load()
    (path,) = compiled(big)
    good = path.read_bytes()
    path.write_bytes(good[:5000] + b"x" + good[5001:])
    assert open_store(big, FILE).load()["big"].names.matches("n7.example")
    assert path.read_bytes() == good


def test_progress_is_told(big: Path) -> None:
    told: list[tuple[str, float]] = []
    store = open_store(big, FILE)
    RuleSetStore(store.loaded, lambda name, done: told.append((name, done))).load()
    assert told[-1] == ("big", 1)
    assert sorted(told) == told


def test_where_nothing_can_be_kept_it_works_all_the_same(big: Path) -> None:
    (big / "state").write_text("a file where the directory should be")
    assert open_store(big, FILE).load()["big"].names.matches("n7.example")


def test_problems_come_back_from_the_child(big: Path) -> None:
    (big / "big.yaml").write_text("entries:\n" + "- 10.0.0.0/8\n" * 30_000 + "- 10.0.0.1/8\n")
    (big / "bad.mmdb").write_bytes(b"\xab\xcd\xefMaxMind.com" + b"\xff" * 50)
    store = open_store(
        big,
        "  a: {type: file, path: big.yaml}\n  b: {type: file, path: bad.mmdb, select: NL}",
    )
    with pytest.raises(ConfigError) as caught:
        store.load()
    one, two = caught.value.problems
    assert (Path(one.file).name, one.line, one.cure) == (
        "big.yaml",
        30_002,
        "did you mean 10.0.0.0/8?",
    )
    assert (Path(two.file).name, two.path) == ("gateway.yaml", "rule_sets.b.path")
    assert "bad.mmdb" in two.message


def test_a_lost_child_is_an_error(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.rulesets.build.sys.executable", "/bin/false")
    with pytest.raises(ConfigError, match="ended with status 1"):
        open_store(big, FILE).load()


def test_only_what_changed_is_read_again(big: Path) -> None:
    (big / "a.txt").write_text("192.0.2.0/24\n")
    store = open_store(big, f"{FILE}\n  a: {{type: file, path: a.txt}}")
    before = store.load()
    assert store.changed() == []
    (big / "new").write_text("198.51.100.0/24\n")
    (big / "new").replace(big / "a.txt")
    assert store.changed() == []  # it may still be being written
    assert store.changed() == ["a"]
    after = store.refresh()
    assert after["big"] is before["big"]
    assert after["a"].prefixes.contains(address_number("198.51.100.1"))
    assert not after["a"].prefixes.contains(address_number("192.0.2.1"))
    assert store.changed() == store.changed() == []


@pytest.mark.parametrize("damage", ["nothing to see here", None])
def test_a_list_that_becomes_bad_stays_as_it_was(
    big: Path, damage: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(big, FILE)
    before = store.load()
    if damage is None:
        (big / "big.txt").unlink()
    else:
        (big / "big.txt").write_text(damage)
    store.changed()
    assert store.changed() == ["big"]
    with caplog.at_level(logging.ERROR):
        assert store.refresh()["big"] is before["big"]
    assert "rule set big stays as it was" in caplog.text
    store.changed()
    assert store.changed() == []  # said once, not at every look
    (big / "big.txt").write_text("new.example\n")
    store.changed()
    assert store.changed() == ["big"]
    assert store.refresh()["big"].names.matches("new.example")


URL = "  far: {type: url, url: 'http://lists.example/far.txt?x=1'}"


def test_a_set_that_was_never_fetched_is_empty_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path, URL)
    assert len(store.load()["far"]) == 0
    assert "rule set far is empty" in caplog.text
    assert store.is_empty("far")


def test_the_copy_of_a_fetched_set_is_used(tmp_path: Path) -> None:
    store = open_store(tmp_path, URL)
    source = store.source("far")
    assert source.named == "far.txt"
    source.path.parent.mkdir(parents=True)
    source.path.write_text("a.example\n")
    assert store.load()["far"].names.matches("a.example")
    assert not store.is_empty("far")


def test_a_bad_copy_does_not_keep_the_gateway_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path, URL)
    path = store.source("far").path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\0\0")
    assert len(store.load()["far"]) == 0
    assert "is not text" in caplog.text
    assert not path.exists()


def test_a_directory_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(GatewayError, match="cannot be read"):
        open_store(tmp_path, "  d: {type: file, path: d}").load()


def test_compiled_sets_that_nobody_opens_are_removed(big: Path) -> None:
    store = open_store(big, FILE)
    store.load()
    (used,) = compiled(big)
    old, young = used.with_name("old.set"), used.with_name("young.set")
    for path in (old, young):
        path.write_bytes(b"")
    for path in (old, used):
        os.utime(path, (1, 1))
    store.forget_old()
    assert set(compiled(big)) == {used, young}
    open_store(big, FILE).load()
    assert used.stat().st_mtime > 1


def test_whoever_stops_waits_for_no_list(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = big / "endless"
    endless.write_text("#!/bin/sh\nexec sleep 1000\n")
    endless.chmod(0o755)
    monkeypatch.setattr("gateway.rulesets.build.sys.executable", str(endless))
    store = open_store(big, FILE)
    store.close()
    with pytest.raises(ConfigError, match="ended with signal 9"):
        store.load()


def test_who_waits_and_is_interrupted_leaves_no_child_behind(tmp_path: Path) -> None:
    compiler, source = Compiler(), tmp_path / "list.txt"
    source.write_text("a.example\n")

    def interrupt(_done: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiler.compile(ListSource(source), tmp_path / "set", interrupt)
    assert compiler._children == set()
