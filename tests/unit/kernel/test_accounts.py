from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path

import pytest

from gateway.kernel import accounts


def test_users_that_exist() -> None:
    me = pwd.getpwuid(os.getuid())
    assert accounts.users([me.pw_name, "nobody-of-this-name"]) == {me.pw_name: me.pw_uid}


def test_control_groups_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "CGROUP_ROOT", tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert accounts.control_groups(["a/b"]) == {}, "not cgroup v2"
    (tmp_path / "cgroup.procs").touch()
    found = accounts.control_groups(["a/b", "a/c"])
    assert found == {"a/b": (tmp_path / "a" / "b").stat().st_ino}


@pytest.mark.parametrize(
    ("bound", "asked", "seen"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("0.0.0.0", "127.0.0.2", True),
        ("::1", "::1", True),
        ("::", "127.0.0.1", True),
    ],
)
def test_who_listens(bound: str, asked: str, seen: bool) -> None:
    with socket.socket(socket.AF_INET6 if ":" in bound else socket.AF_INET) as listener:
        listener.bind((bound, 0))
        port = listener.getsockname()[1]
        assert accounts.listener_users(asked, port) == frozenset(), "bound, but does not listen"
        listener.listen()
        assert accounts.listener_users(asked, port) == ({os.getuid()} if seen else frozenset())
