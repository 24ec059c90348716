"""From a file to what it means on this machine."""

from __future__ import annotations

from pathlib import Path
from threading import Barrier

import pytest

from gateway import assembly
from gateway.assembly import named_accounts, resolved
from gateway.config.load import parse
from gateway.errors import ConfigError
from gateway.rulesets.store import RuleSetStore


def store(folder: Path, rules: str) -> RuleSetStore:
    text = f"lan: {{this_machine: true}}\nrules:\n{rules}  - {{to: direct}}\n"
    return RuleSetStore(parse(text, str(folder / "gateway.yaml"), resolve_secret=lambda *_: ""))


def test_users_and_groups_are_looked_up(tmp_path: Path) -> None:
    found = named_accounts(store(tmp_path, "  - {uid: [root, 7], to: reject}\n"))
    assert found == ({"root": 0}, {})
    found = named_accounts(store(tmp_path, "  - {not: {gid: root}, to: reject}\n"))
    assert found == ({}, {"root": 0})


def test_who_is_not_there_is_named_with_the_line(tmp_path: Path) -> None:
    rules = "  - {uid: [root, nobody-of-that-name], to: reject}\n  - {gid: no-group, to: reject}\n"
    with pytest.raises(ConfigError) as raised:
        named_accounts(store(tmp_path, rules))
    user, group = raised.value.problems
    assert (user.line, user.path) == (3, "rules[0].uid")
    assert "no user nobody-of-that-name" in user.message
    assert (group.line, group.path) == (4, "rules[1].gid")
    assert "getent group" in group.cure


def test_servers_are_looked_up_side_by_side_and_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer keeps the start waiting once, not once for each."""
    both_ask = Barrier(2, timeout=10)

    def resolve(host: str) -> tuple[str, ...]:
        both_ask.wait()
        return (f"address of {host}",)

    monkeypatch.setattr(assembly, "resolve", resolve)
    assert resolved(["a.example", "b.example", "a.example"]) == {
        "a.example": ("address of a.example",),
        "b.example": ("address of b.example",),
    }
    assert resolved([]) == {}
