"""One gateway per run directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.control.lock import LockedError, run_lock
from gateway.errors import GatewayError


def test_a_second_holder_is_told_who_the_first_is(tmp_path: Path) -> None:
    run_dir = tmp_path / "new" / "run"
    with run_lock(run_dir):
        with pytest.raises(LockedError) as caught, run_lock(run_dir):
            pass
        assert caught.value.process == os.getpid()
        assert str(os.getpid()) in str(caught.value)
    with run_lock(run_dir):
        pass


def test_an_error_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        raise ZeroDivisionError
    with run_lock(tmp_path):
        pass


def test_a_killed_holder_holds_no_more(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gateway.control.lock import run_lock\n"
        "with run_lock(Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).resolve().parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError) as caught, run_lock(tmp_path):
            pass
        assert caught.value.process == holder.pid
        holder.kill()
    with run_lock(tmp_path):
        pass


def test_a_place_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GatewayError, match="run directory") as caught, run_lock(tmp_path / "file"):
        pass
    assert "--run-dir" in caught.value.hint
