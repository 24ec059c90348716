from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from gateway.errors import ApplyError
from gateway.kernel import iptables, iptables_worker
from gateway.kernel.applier import Applier
from gateway.kernel.iptables_job import Reply, Request
from gateway.plan.addresses import Family
from gateway.plan.model import Backend
from gateway.plan.xt import xt_tables

from .namespace import Namespace
from .plans import plan


def test_the_xtables_lock_is_waited_for(
    ns: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "xtables.lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock))
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        applying = ns.start(iptables.apply, plan(Backend.IPTABLES, rules=[{"to": "home"}]))
        with pytest.raises(TimeoutError):
            applying.result(timeout=1.5)
        assert "GATEWAY" not in ns.run("iptables-legacy-save")
    assert applying.result(timeout=60)
    assert "GATEWAY" in ns.run("iptables-legacy-save")


def test_a_lock_that_is_never_released_is_an_error(
    ns: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "xtables.lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock))
    monkeypatch.setattr(iptables_worker, "_LOCK_WAIT_S", 0.1)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        request = Request(Family.V4, "read")
        with pytest.raises(ApplyError, match="another program holds"):
            ns.call(iptables_worker.perform, request)


def test_the_jump_goes_back_to_the_top(ns: Namespace, applier: Applier) -> None:
    ns.call(applier.apply, plan(Backend.IPTABLES))
    ns.run("iptables-legacy", "-t", "mangle", "-I", "PREROUTING", "-p", "udp", "-j", "ACCEPT")
    steps = ns.call(applier.apply, plan(Backend.IPTABLES)).steps
    assert steps == ("iptables: chains loaded",)
    rules = ns.run("iptables-legacy", "-t", "mangle", "-S", "PREROUTING").splitlines()
    assert rules[1].endswith("-j GATEWAY_PREROUTING")
    assert rules[2:] == ["-A PREROUTING -p udp -j ACCEPT"]


def test_one_family_that_fails_takes_the_other_back(ns: Namespace) -> None:
    ns.sh("ipset create gw_alive4 hash:net; ipset create gw_alive6 hash:net family inet6")
    before = ns.state()
    wanted = plan(Backend.IPTABLES, on_failure="open")
    ns.call(iptables.apply, plan(Backend.IPTABLES, on_failure="open", rules=[{"to": "home"}]))
    installed = ns.state()
    # Only IPv4 uses this set: IPv6 is loaded, IPv4 is refused.
    with pytest.raises(ApplyError, match="iptables ipv4 table mangle"):
        ns.call(iptables.apply, wanted)
    assert ns.state() == installed
    ns.call(iptables.remove)
    assert ns.state() == before


def test_rules_come_back_as_they_were_written(ns: Namespace) -> None:
    """What is read before a change is what an error puts back."""
    wanted = xt_tables(plan(Backend.IPTABLES, rules=_MANY), Family.V6)
    first = ns.call(_apply, wanted)
    assert first.changed
    assert first.tables == ()
    saved = ns.run("ip6tables-legacy-save", "-t", "mangle")
    emptied = ns.call(_apply, ())
    assert {t.name for t in emptied.tables} == {t.name for t in wanted}
    ns.call(_apply, emptied.tables)
    assert _rules(ns.run("ip6tables-legacy-save", "-t", "mangle")) == _rules(saved)


_MANY: list[dict[str, object]] = [
    {"protocol": "icmp", "source": "fd00:20::7", "to": "reject"},
    {
        "destination": "2001:db8:5::/48",
        "port": [1, 2, "3-5"],
        "source_port": "1-1024",
        "to": "direct",
    },
    {"interface": "lan0", "protocol": "udp", "to": "silent"},
    {"to": "home"},
]


def _apply(tables: iptables.Tables) -> Reply:
    (reply,) = iptables.run([Request(Family.V6, "apply", tables)])
    assert reply.error == ""
    return reply


def _rules(saved: str) -> list[str]:
    return sorted(line for line in saved.splitlines() if line.startswith("-A"))
