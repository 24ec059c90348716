"""The launcher ``gw``: what it does on machines that are not set up, and on one that is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SHELL_TOOLS = (
    *("sh", "readlink", "dirname", "basename", "sed", "xargs"),
    *("cmp", "tr", "cp", "id", "echo", "grep"),
)


class Checkout:
    """A copy of the launcher and its lists, with a PATH of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "path"
        self.path.mkdir()
        for name in ("gw", ".apt", ".lock"):
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, directory / name)
        for tool in SHELL_TOOLS:
            found = shutil.which(tool)
            assert found is not None
            (self.path / tool).symlink_to(found)
        self.command("sleep", "")

    def stub(self, path: Path, body: str) -> None:
        """An executable that notes that it ran, then does ``body``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(f'#!/bin/sh\necho "{path.name} $*" >>"{self.directory}/ran"\n{body}\n')
        path.chmod(0o755)

    def command(self, name: str, body: str) -> None:
        self.stub(self.path / name, body)

    def set_up(self, *lists: str) -> None:
        """As a run leaves it that did all of ``lists``."""
        site = self.directory / ".venv/lib/python3.11/site-packages"
        site.mkdir(parents=True)
        self.stub(self.directory / "python3.11", 'echo "PYTHONPATH=$PYTHONPATH"')
        (self.directory / ".venv/bin").mkdir()
        (self.directory / ".venv/bin/python").symlink_to(self.directory / "python3.11")
        for name in lists:
            copy = "gw-" + name.replace(".", "").replace("/", "-")
            shutil.copy(self.directory / name, site / copy)

    def set_up_before_a_change(self) -> None:
        """For a list of Python packages that is another one now."""
        self.set_up(*RUNTIME)
        with (self.directory / ".lock/runtime.txt").open("a") as lock:
            lock.write("# changed\n")

    def lacks(self, user: int, *packages: str) -> None:
        """It is run by this user (a number), on a machine that has all packages but these."""
        self.command("id", f"echo {user}")
        self.command(
            "dpkg-query", f"case $4 in {'|'.join(packages)}) exit 1;; esac; echo installed"
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.directory / "gw"), *arguments],
            env={"PATH": str(self.path)},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def ran(self) -> list[str]:
        record = self.directory / "ran"
        return record.read_text().splitlines() if record.exists() else []


def fails_once(directory: Path, name: str) -> str:
    """Shell that fails the first time, and never again."""
    return f'[ -e "{directory}/{name}-tried" ] || {{ : >"{directory}/{name}-tried"; exit 1; }}'


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


RUNTIME = (".apt/runtime.txt", ".lock/runtime.txt")
TEST = (".apt/runtime.txt", ".apt/test.txt", ".lock/dev.txt")


def test_a_machine_that_is_set_up_starts_at_once(checkout: Checkout) -> None:
    checkout.set_up(*RUNTIME)
    done = checkout.run("plan", "--json", "a b")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"PYTHONPATH={checkout.directory}\n"
    assert checkout.ran == ["python3.11 -P -m gateway plan --json a b"]


def test_test_checks_then_tests_and_passes_arguments_on(checkout: Checkout) -> None:
    checkout.set_up(*TEST)
    assert checkout.run("test", "-k", "lab").returncode == 0
    assert checkout.ran == [
        "python3.11 -m ruff check gateway tests",
        "python3.11 -m ruff format --check gateway tests",
        "python3.11 -m mypy",
        "python3.11 -m pytest --require-lab -n 3 --dist loadfile -k lab",
    ]


def test_without_root_it_names_the_missing_packages_and_the_command(checkout: Checkout) -> None:
    checkout.lacks(1000, "ipset")
    checkout.command("apt-get", "exit 1")
    done = checkout.run("version")
    assert done.returncode == 1
    assert done.stderr == "gw: not root; run this with sudo, or: sudo apt-get install ipset\n"
    assert not any(line.startswith("apt-get") for line in checkout.ran)


def test_root_installs_only_what_is_missing(checkout: Checkout) -> None:
    checkout.lacks(0, "ipset", "gcc")
    checkout.command("apt-cache", '[ "$2" != gcc ]')
    checkout.command("apt-get", '[ "$1" = update ] || exit 100')
    done = checkout.run("version")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "gw: installing Debian packages: gcc ipset",
        "gw: this release has no package gcc; going on without",
        "gw: apt install failed; once more in 5 s",
        "gw: apt install failed; once more in 20 s",
        "gw: apt-get could not install ipset",
    ]
    installs = [line for line in checkout.ran if line.startswith("apt-get install")]
    assert [line.split()[-1] for line in installs] == ["ipset"] * 3


def test_without_lists_of_packages_it_ends_and_says_why(checkout: Checkout) -> None:
    checkout.lacks(0, "*")
    checkout.command("apt-cache", "exit 100")
    checkout.command("apt-get", "exit 100")
    done = checkout.run("version")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "gw: no package could be found, as apt-get update failed"
    )
    assert not any("install" in line for line in checkout.ran)


def test_what_fails_for_a_moment_is_tried_again(checkout: Checkout) -> None:
    checkout.set_up_before_a_change()
    checkout.lacks(0, "ipset")
    checkout.command("apt-cache", "")
    checkout.command("apt-get", fails_once(checkout.directory, "$1"))
    checkout.stub(
        checkout.directory / "python3.11",
        f'case $* in *"pip install"*) {fails_once(checkout.directory, "pip")} ;; esac',
    )
    done = checkout.run("version")
    assert (done.returncode, done.stderr.count("once more in 5 s")) == (0, 3)
    assert "once more in 20 s" not in done.stderr
    assert checkout.run("version").stderr == ""


def test_another_system_is_told_what_it_needs(checkout: Checkout) -> None:
    checkout.set_up(".lock/runtime.txt")
    done = checkout.run("version")
    assert "this is not Debian: install by hand what it calls curl gcc ipset" in done.stderr


def test_a_new_list_is_installed_with_hashes(checkout: Checkout) -> None:
    checkout.set_up_before_a_change()
    checkout.command("dpkg-query", "echo installed")
    checkout.command("apt-get", "exit 1")
    assert checkout.run("version").returncode == 0
    pip = [line for line in checkout.ran if "pip install" in line]
    assert len(pip) == 2
    assert all("--require-hashes" in line for line in pip)
    assert checkout.run("version").stderr == ""


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shell_scripts_are_clean() -> None:
    scripts = [str(ROOT / name) for name in ("gw", ".ci/run", ".lock/update")]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_locked_lists_have_a_hash_for_everything_and_name_no_host() -> None:
    for path in (ROOT / ".lock").glob("*.txt"):
        text = path.read_text()
        assert "://" not in text
        for entry in text.replace("\\\n", " ").splitlines():
            assert "--hash=sha256:" in entry, f"{path.name}: {entry}"


def test_the_launcher_is_executable() -> None:
    assert all(os.access(ROOT / name, os.X_OK) for name in ("gw", ".ci/run"))
