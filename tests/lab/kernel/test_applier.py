from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from gateway.errors import ApplyError
from gateway.flow import Protocol
from gateway.kernel.applier import Applier
from gateway.marks import Marks
from gateway.plan.addresses import Family
from gateway.plan.diff import diff
from gateway.plan.matches import Transport
from gateway.plan.model import Backend, Chain, Hook, IpRule, NftRule, Plan, Route
from gateway.plan.verdicts import Tproxy

from .namespace import Namespace
from .plans import plan

OTHER = {Backend.NFTABLES: Backend.IPTABLES, Backend.IPTABLES: Backend.NFTABLES}
FEWER_RULES: list[dict[str, object]] = [
    {"destination": ["10.64.0.0/10", "192.0.2.0/24"], "to": "direct"},
    {"to": "home"},
]


def with_bad_route(good: Plan) -> Plan:
    """A plan that fails at its routes, after sysctls and sets."""
    bad = Route(Family.V4, "unicast", ip_network("192.0.2.0/24"), "no-such-link", 8801)
    return replace(good, routes=(*good.routes, bad))


def with_bad_chain(good: Plan) -> Plan:
    """A plan that the kernel refuses at its very last step: TPROXY has no place in output."""
    rule = NftRule("wrong", Tproxy(7895), (Transport((Protocol.TCP,)),), Family.V6)
    chain = Chain("wrong", "mangle", (rule,), Hook("output", "mangle", -150))
    return replace(good, chains=(*good.chains, chain))


@pytest.mark.parametrize("on_failure", ["closed", "open"])
@pytest.mark.parametrize("tcp", ["tproxy", "redirect"])
def test_apply_twice_then_remove(
    ns: Namespace, applier: Applier, backend: Backend, tcp: str, on_failure: str
) -> None:
    before = ns.state()
    wanted = plan(backend, tcp=tcp, on_failure=on_failure)

    assert ns.call(applier.apply, wanted).steps
    installed = ns.state()
    assert diff(ns.call(applier.snapshot, backend), wanted).render() == ""

    assert ns.call(applier.apply, wanted).steps == ()
    assert ns.state() == installed != before

    assert ns.call(applier.remove).steps
    assert ns.state() == before
    assert ns.call(applier.remove).steps == ()


def test_reload_and_change_of_backend(ns: Namespace, applier: Applier, backend: Backend) -> None:
    before = ns.state()
    for wanted in (
        plan(backend),
        plan(backend, rules=FEWER_RULES),
        plan(backend, tcp="redirect"),
        plan(OTHER[backend], rules=FEWER_RULES),
        plan(backend),
    ):
        ns.call(applier.apply, wanted)
        for shown in Backend:
            expected = wanted if shown is wanted.backend else replace(wanted, chains=(), sets=())
            snapshot = ns.call(applier.snapshot, shown)
            difference = diff(snapshot, replace(expected, backend=shown))
            assert difference.render() == "", f"{wanted.backend} shown as {shown}"
    ns.call(applier.remove)
    assert ns.state() == before


@pytest.mark.parametrize("spoil", [with_bad_route, with_bad_chain])
@pytest.mark.parametrize("previous", [None, "same backend", "other backend"])
def test_error_midway_reverts(
    ns: Namespace,
    applier: Applier,
    backend: Backend,
    spoil: type[object],
    previous: str | None,
) -> None:
    if previous:
        earlier = backend if previous == "same backend" else OTHER[backend]
        ns.call(applier.apply, plan(earlier, rules=FEWER_RULES))
    before = ns.state()
    bad = spoil(plan(backend))
    assert isinstance(bad, Plan)

    with pytest.raises(ApplyError) as caught:
        ns.call(applier.apply, bad)

    assert caught.value.hint
    assert not getattr(caught.value, "__notes__", [])
    assert ns.state() == before


KILLED = """
import os, signal, sys
from pathlib import Path
from gateway.flow import Protocol
from gateway.kernel.applier import Applier
from gateway.kernel.step import Steps
from gateway.plan.model import Backend
sys.path.insert(0, {tests!r})
from lab.kernel.plans import plan

record, made = Steps.record, []

def record_and_die(self, step):
    record(self, step)
    made.extend([step] if step else [])
    if len(made) == {steps}:
        os.kill(os.getpid(), signal.SIGKILL)

Steps.record = record_and_die
Applier(Path({run_dir!r})).apply(plan(Backend({backend!r}), on_failure="open"))
"""


@pytest.mark.parametrize("steps", [1, 4, 9, 13])
def test_killed_midway_then_removed(
    ns: Namespace, tmp_path: Path, backend: Backend, steps: int
) -> None:
    before = ns.state()
    script = KILLED.format(
        tests=str(Path(__file__).parents[2]),
        steps=steps,
        run_dir=str(tmp_path),
        backend=backend.value,
    )
    died = ns.call(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert ns.state() != before

    # Another process, as `gateway down` is: it knows the run directory alone.
    assert ns.call(Applier(tmp_path).remove).steps
    assert ns.state() == before


def test_start_over_what_a_killed_run_left(ns: Namespace, tmp_path: Path, backend: Backend) -> None:
    before = ns.state()
    ns.call(Applier(tmp_path).apply, plan(OTHER[backend], on_failure="open"))
    stale = IpRule(8850, Family.V4, "lookup", table=8801, mark=Marks().tun)
    ns.run(
        "ip",
        "rule",
        "add",
        "pref",
        "8850",
        "fwmark",
        str(stale.mark),
        "lookup",
        "8801",
        "proto",
        "0x67",
    )

    wanted = plan(backend)
    second = Applier(tmp_path)
    ns.call(second.apply, wanted)
    assert diff(ns.call(second.snapshot, backend), wanted).render() == ""
    ns.call(second.remove)
    assert ns.state() == before


def test_a_rule_deleted_by_hand_comes_back(
    ns: Namespace, applier: Applier, backend: Backend
) -> None:
    wanted = plan(backend)
    ns.call(applier.apply, wanted)
    installed = ns.state()
    if backend is Backend.NFTABLES:
        ns.run("nft", "flush", "chain", "inet", "gateway", "lan")
    else:
        ns.run("iptables-legacy", "-t", "mangle", "-F", "GATEWAY_LAN")
    ns.run("ip", "-6", "rule", "del", "pref", "8801")
    ns.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    assert not diff(ns.call(applier.snapshot, backend), wanted).empty

    assert ns.call(applier.apply, wanted).steps
    assert ns.state() == installed


def test_an_interrupt_midway_reverts(
    ns: Namespace, applier: Applier, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(wanted: Plan) -> None:
        raise KeyboardInterrupt

    before = ns.state()
    monkeypatch.setattr("gateway.kernel.applier.deadman.refresh", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ns.call(applier.apply, plan(backend))
    assert ns.state() == before


def test_what_sockets_still_rely_on_is_spared(ns: Namespace, applier: Applier) -> None:
    """Two steps: the new ways come, and the old ones go once nobody uses them."""
    bare = plan(Backend.NFTABLES)
    server = ip_network("198.51.100.5")
    far = Route(Family.V4, "unicast", server, "wan0", 254, "203.0.113.1", 88)
    old = replace(bare, routes=(*bare.routes, far, replace(far, destination=ip_network("1.1.1.1"))))
    fresh = replace(bare, routes=(*bare.routes, replace(far, via="203.0.113.9")))
    ns.call(applier.apply, old)
    first = ns.call(applier.apply, fresh, old)
    assert first.steps == (
        (
            "ip -4 route replace unicast 198.51.100.5/32 via 203.0.113.9 dev wan0 onlink table 254"
            " proto 0x67 metric 88"
        ),
    )
    second = ns.call(applier.apply, fresh)
    assert [step.partition(" via")[0] for step in second.steps] == [
        "ip -4 route del unicast 1.1.1.1/32"
    ]
    assert ns.call(applier.apply, fresh).steps == ()
