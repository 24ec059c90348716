"""The rendered texts, given to a real kernel in a network namespace of the test's own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.kernel.probe import probe_host
from gateway.marks import TAG_PREFIX
from gateway.plan.addresses import Family
from gateway.plan.model import Backend, Plan
from gateway.plan.render_ip import rule_line
from gateway.plan.render_iptables import render_ipset, render_iptables
from gateway.plan.render_nft import render_nft
from gateway.plan.script import render_script
from gateway.plan.snapshot import ChainKey, expected_chains

from .scenarios import SCENARIOS

RESTORE = {Family.V4: "iptables-legacy-restore", Family.V6: "ip6tables-legacy-restore"}
SAVE = {Family.V4: "iptables-legacy-save", Family.V6: "ip6tables-legacy-save"}
IP = {Family.V4: "-4", Family.V6: "-6"}

pytestmark = pytest.mark.lab
scenarios = pytest.mark.parametrize("name", SCENARIOS)


@dataclass(frozen=True)
class Netns:
    name: str

    def run(self, *command: str, text: str = "") -> str:
        """Run inside; fails the test with what the tool said."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, *command],
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def state(self) -> dict[str, str]:
        """All that a plan may change, as text."""
        # Counters, and the dates in iptables-save's comments, change by themselves.
        noise = re.compile(r"^#.*\n|\[\d+:\d+\]|counter packets \d+ bytes \d+", re.MULTILINE)
        commands = {
            # Without elements: those of a dead-man set go by themselves.
            "nft": ["nft", "--terse", "list", "ruleset"],
            "ipset": ["ipset", "list", "-name"],
            "rule4": ["ip", "-4", "-details", "rule"],
            "rule6": ["ip", "-6", "-details", "rule"],
            "route4": ["ip", "-4", "route", "show", "table", "all"],
            "route6": ["ip", "-6", "route", "show", "table", "all"],
            "v4": [SAVE[Family.V4]],
            "v6": [SAVE[Family.V6]],
            "sysctl": ["sysctl", "-a", "-r", r"^net\.ipv[46]\.(ip_forward|conf)"],
        }
        return {name: noise.sub("", self.run(*command)) for name, command in commands.items()}


@pytest.fixture(scope="module")
def netns() -> Iterator[Netns]:
    if os.geteuid() != 0:
        pytest.skip("needs root: makes a network namespace")
    name = f"gwplan{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    made = Netns(name)
    try:
        for link in ("wan0", "lan0", "lan1", "lan0.7"):
            made.run("ip", "link", "add", link, "type", "veth", "peer", "name", f"p{link}")
        for family in Family:
            # What the tools make by themselves on first use is not a change of ours.
            for table in ("filter", "nat", "mangle"):
                made.run(RESTORE[family], "--noflush", text=f"*{table}\nCOMMIT\n")
        made.run("ip", "link", "set", "lo", "up")
        yield made
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def require_nft_queue() -> None:
    found = probe_host("nftables", nfqueue=True).features["nft-queue"]
    if not found.available:
        pytest.skip(f"nft-queue: {found.detail}")


@scenarios
def test_nft_accepts(name: str, netns: Netns) -> None:
    if name.startswith("queue"):
        require_nft_queue()
    text = render_nft(SCENARIOS[name].plan(Backend.NFTABLES))
    netns.run("nft", "-c", "-f", "-", text=text)


@scenarios
def test_iptables_restore_accepts(name: str, netns: Netns) -> None:
    plan = SCENARIOS[name].plan(Backend.IPTABLES)
    netns.run("ipset", "restore", text=render_ipset(plan))
    try:
        for family in Family:
            text = render_iptables(plan, family)
            netns.run(RESTORE[family], "--test", "--noflush", text=text)
    finally:
        netns.run("ipset", "destroy")


@pytest.mark.parametrize("backend", Backend)
@scenarios
def test_script_is_clean_shell(name: str, backend: Backend, tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    script = _script(SCENARIOS[name].plan(backend), tmp_path)
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("backend", Backend)
@pytest.mark.parametrize(
    "name", ["lan_and_own", "lan_redirect_open", "preserve_source", "kernel_keys"]
)
def test_script_does_and_undoes(name: str, backend: Backend, netns: Netns, tmp_path: Path) -> None:
    plan = SCENARIOS[name].plan(backend)
    script = _script(plan, tmp_path)
    call = ["env", f"GATEWAY_SAVED={tmp_path}/saved", "sh", script]
    before = netns.state()
    try:
        netns.run(*call, "up")
        once = netns.state()
        assert _tags(netns, backend) == expected_chains(plan)
        assert _ladder(netns) == [
            " ".join(rule_line(rule, "add").split()[1:]) for rule in plan.ip_rules
        ]
        listed = netns.run("nft", "list", "sets") + netns.run("ipset", "save")
        for planned in plan.sets:
            assert planned.name in listed
            # Elements of a dead-man set may be gone by now.
            if planned.timeout_s is None:
                assert all(str(element) in listed for element in planned.elements)
        for sysctl in plan.sysctls:
            assert netns.run("sysctl", "-n", sysctl.key).strip() == sysctl.value
        netns.run(*call, "up")
        assert netns.state() == once, "up again changes nothing"
    finally:
        netns.run(*call, "down")
    assert netns.state() == before
    netns.run(*call, "down")


def _script(plan: Plan, directory: Path) -> str:
    path = directory / "gateway.sh"
    path.write_text(render_script(plan))
    return str(path)


def _tags(netns: Netns, backend: Backend) -> dict[ChainKey, tuple[str, ...]]:
    """The tags of our rules by chain, in the kernel's order."""
    found: dict[ChainKey, list[str]] = {}
    if backend is Backend.NFTABLES:
        listed = json.loads(netns.run("nft", "-j", "list", "ruleset"))["nftables"]
        for rule in (entry["rule"] for entry in listed if "rule" in entry):
            key = ChainKey(rule["table"], rule["chain"], rule["family"])
            found.setdefault(key, []).append(rule["comment"])
    else:
        for family in Family:
            table = ""
            for line in netns.run(SAVE[family]).splitlines():
                if line.startswith("*"):
                    table = line[1:]
                if line.startswith("-A"):
                    words = line.split()
                    (tag,) = (word.strip('"') for word in words if TAG_PREFIX in word)
                    key = ChainKey(table, words[1], family.value)
                    found.setdefault(key, []).append(tag)
    return {key: tuple(tags) for key, tags in found.items()}


def _ladder(netns: Netns) -> list[str]:
    """Our ip rules in the words of ``ip rule add``."""
    rules = []
    for family in Family:
        for rule in json.loads(netns.run("ip", "-json", "-details", IP[family], "rule")):
            if rule["protocol"] == "103":
                words = [IP[family], "rule", "add", "priority", str(rule["priority"])]
                if "iif" in rule:
                    words += ["iif", rule["iif"]]
                if "fwmark" in rule:
                    words += ["fwmark", f"{_hex(rule['fwmark'])}/{_hex(rule['fwmask'])}"]
                words += ["protocol", "0x67"]
                if "goto" in rule:
                    words += ["goto", str(rule["goto"])]
                elif "table" in rule:
                    words += ["lookup", rule["table"]]
                else:
                    words += ["nop"]
                rules.append(" ".join(words))
    return rules


def _hex(text: str) -> str:
    return f"{int(text, 16):#010x}"
