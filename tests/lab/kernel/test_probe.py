from __future__ import annotations

import ctypes
from ipaddress import ip_interface
from pathlib import Path

import pytest

from gateway.errors import CapabilityError
from gateway.kernel import libnftables
from gateway.kernel.applier import Applier
from gateway.kernel.probe import probe_host
from gateway.plan.backend import choose_backend
from gateway.plan.host import DefaultRoute
from gateway.plan.model import Backend

from .namespace import Namespace


def test_one_reading_of_a_machine(ns: Namespace) -> None:
    ns.sh("ip -6 route add default via fd00:20::9 metric 2048 proto ra")
    before = ns.state()
    facts = ns.call(probe_host)
    assert ns.state() == before
    assert ns.run("cat", "/proc/net/ip_tables_names") == ""

    lan = next(i for i in facts.interfaces if i.name == "lan0")
    assert lan.up
    assert lan.addresses == (ip_interface("192.168.20.1/24"), ip_interface("fd00:20::1/64"))
    assert set(facts.default_routes) == {
        DefaultRoute("ipv4", "wan0", "203.0.113.1"),
        DefaultRoute("ipv6", "wan0", "2001:db8:113::1", metric=1024),
        DefaultRoute("ipv6", "lan0", "fd00:20::9", from_ra=True, metric=2048),
    }
    missing = [name for name, feature in facts.features.items() if not feature.available]
    assert missing == ["legacy-rules"]
    assert facts.sysctls["net.ipv4.ip_forward"] == "0"
    assert "net.ipv4.conf.lan0.rp_filter" in facts.sysctls
    assert choose_backend("auto", facts)[0] is Backend.NFTABLES
    assert choose_backend("iptables", facts)[0] is Backend.IPTABLES


def test_only_what_the_choice_depends_on(ns: Namespace) -> None:
    facts = ns.call(probe_host, "auto")
    assert "iptables" not in facts.features
    assert choose_backend("auto", facts)[0] is Backend.NFTABLES

    ns.run("ip6tables-legacy", "-P", "INPUT", "DROP")
    facts = ns.call(probe_host, "auto")
    assert facts.features["legacy-rules"].detail == "1 in ipv6"
    assert choose_backend("auto", facts)[0] is Backend.IPTABLES

    assert choose_backend("nftables", ns.call(probe_host, "nftables"))[0] is Backend.NFTABLES
    assert choose_backend("iptables", ns.call(probe_host, "iptables"))[0] is Backend.IPTABLES


def test_ipv6_that_is_switched_off(ns: Namespace) -> None:
    ns.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    facts = ns.call(probe_host, "nftables")
    assert not facts.has("ipv6")
    assert "disable_ipv6" in facts.features["ipv6"].detail


def test_without_libnftables(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with iptables alone: it works, and nothing trips over the missing library."""

    def not_there(name: str | None, *arguments: object, **options: object) -> ctypes.CDLL:
        if name and "nftables" in name:
            raise OSError(f"{name}: cannot open shared object file")
        return ctypes.CDLL.__new__(ctypes.CDLL)

    libnftables._library.cache_clear()
    monkeypatch.setattr(libnftables.ctypes, "CDLL", not_there)
    try:
        facts = ns.call(probe_host, "auto")
        assert choose_backend("auto", facts)[0] is Backend.IPTABLES
        with pytest.raises(CapabilityError, match=r"libnftables\.so\.1") as caught:
            choose_backend("nftables", facts)
        assert "apt-get install nftables" in caught.value.hint
    finally:
        libnftables._library.cache_clear()


def test_a_machine_with_one_firewall_alone(
    ns: Namespace, applier: Applier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`remove` and `snapshot` do not need the tools of the backend that is not there."""
    empty = tmp_path / "bin"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.setattr("gateway.kernel.iptables.sys.executable", "/nonexistent")
    assert ns.call(applier.remove).steps == ()
    assert ns.call(applier.snapshot, Backend.IPTABLES).chains == {}
