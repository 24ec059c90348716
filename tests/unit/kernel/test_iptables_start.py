"""Workers that cannot be started: an error in the reply, and none is left behind."""

from __future__ import annotations

import pytest

from gateway.errors import ApplyError
from gateway.kernel import iptables
from gateway.kernel.applier import Applier
from gateway.kernel.iptables_worker import Request
from gateway.plan.addresses import Family


class Popen:
    """The first can be started, and answers nothing; the second cannot."""

    made: list[Popen]

    def __init__(self, *_arguments, **_options):
        if self.made:
            raise OSError(11, "Resource temporarily unavailable")
        self.made.append(self)
        self.returncode = 1
        self.ended = False

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.ended = True

    def communicate(self, _request, timeout):
        assert timeout
        return b"", b"no such thing"


def test_one_worker_that_cannot_be_started(monkeypatch):
    monkeypatch.setattr(Popen, "made", [], raising=False)
    monkeypatch.setattr(iptables.subprocess, "Popen", Popen)
    first, second = iptables.run([Request(family, "read") for family in Family])
    assert "no such thing" in first.error
    assert "cannot be started: Resource temporarily unavailable" in second.error
    assert [worker.ended for worker in Popen.made] == [True]


def test_what_can_be_removed_is_removed_though_something_cannot_be_read(tmp_path, monkeypatch):
    """`gateway down` after a crash must not stop at its first question."""
    asked = []

    def refuse():
        raise ApplyError("the iptables worker failed")

    def withdraw(_self, _kept):
        asked.append("withdrawn")
        return ()

    monkeypatch.setattr("gateway.kernel.applier.require_net_admin", lambda: None)
    monkeypatch.setattr("gateway.kernel.applier._redirect_ports", refuse)
    monkeypatch.setattr(Applier, "_withdrawals", withdraw)
    with pytest.raises(ApplyError, match="not all could be removed: the iptables worker failed"):
        Applier(tmp_path).remove()
    assert asked == ["withdrawn"]
