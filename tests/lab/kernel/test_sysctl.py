from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import ApplyError
from gateway.kernel.sysctl import SysctlJournal, key_of, path_of, read
from gateway.plan.model import Sysctl

from .namespace import Namespace

FORWARD = Sysctl("net.ipv4.ip_forward", "1", "test")
FORWARD6 = Sysctl("net.ipv6.conf.all.forwarding", "1", "test")


def test_set_and_restore(ns: Namespace, tmp_path: Path) -> None:
    # A careful owner's settings, which turning forwarding on rewrites.
    ns.sh(
        """
        sysctl -qw net.ipv4.conf.all.accept_redirects=0
        sysctl -qw net.ipv4.conf.wan0.forwarding=1
        sysctl -qw net.ipv6.conf.lan0.forwarding=1
        """
    )
    before = ns.state()
    journal = SysctlJournal(tmp_path)
    for setting in (FORWARD, FORWARD6):
        assert ns.call(journal.set, setting)
        assert not ns.call(journal.set, setting)
    assert journal.previous() == {FORWARD.key: "0", FORWARD6.key: "0"}

    # Another process takes it back: the journal is on the disk.
    journal = SysctlJournal(tmp_path)
    for setting in (FORWARD6, FORWARD):
        assert ns.call(journal.restore, setting.key)
        assert not ns.call(journal.restore, setting.key)
    assert ns.state() == before
    assert list(tmp_path.iterdir()) == []


def test_what_is_so_already_is_not_ours_to_restore(ns: Namespace, tmp_path: Path) -> None:
    ns.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    journal = SysctlJournal(tmp_path)
    assert not ns.call(journal.set, FORWARD)
    assert not ns.call(journal.restore, FORWARD.key)
    assert ns.call(read, FORWARD.key) == "1"


def test_what_somebody_changed_meanwhile_is_left_alone(ns: Namespace, tmp_path: Path) -> None:
    journal = SysctlJournal(tmp_path)
    rp_filter = Sysctl("net.ipv4.conf.lan0.rp_filter", "1", "test")
    ns.run("sysctl", "-qw", "net.ipv4.conf.lan0.rp_filter=0")
    ns.call(journal.set, rp_filter)
    ns.run("sysctl", "-qw", "net.ipv4.conf.lan0.rp_filter=2")
    assert not ns.call(journal.restore, rp_filter.key)
    assert ns.call(read, rp_filter.key) == "2"


def test_killed_between_journal_and_write(
    ns: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(key: str, value: str) -> None:
        raise KeyboardInterrupt

    journal = SysctlJournal(tmp_path)
    monkeypatch.setattr("gateway.kernel.sysctl.write", die)
    with pytest.raises(KeyboardInterrupt):
        ns.call(journal.set, FORWARD)
    monkeypatch.undo()
    assert not ns.call(journal.restore, FORWARD.key)
    assert ns.call(read, FORWARD.key) == "0"


def test_an_unknown_or_refused_setting_is_an_error(ns: Namespace, tmp_path: Path) -> None:
    journal = SysctlJournal(tmp_path)
    with pytest.raises(ApplyError, match=r"no setting net\.ipv4\.nonsense"):
        ns.call(journal.set, Sysctl("net.ipv4.nonsense", "1", "test"))
    with pytest.raises(ApplyError, match=r"cannot set net\.ipv4\.ip_forward=x"):
        ns.call(journal.set, Sysctl("net.ipv4.ip_forward", "x", "test"))


def test_a_damaged_journal_is_an_error_with_a_cure(tmp_path: Path) -> None:
    (tmp_path / "sysctl.json").write_text('{"net.ipv4.ip_forward": 1')
    with pytest.raises(ApplyError, match="damaged") as caught:
        SysctlJournal(tmp_path).previous()
    assert "delete the file" in caught.value.hint


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
        ("net.ipv4.conf.eth0/7.rp_filter", "/proc/sys/net/ipv4/conf/eth0.7/rp_filter"),
    ],
)
def test_dotted_names(key: str, path: str) -> None:
    assert path_of(key) == Path(path)
    assert key_of(Path(path)) == key
