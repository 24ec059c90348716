"""The commands on a real machine: the lab's router, from ``init`` to ``down``."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.lab.gateway_process import ENVIRONMENT, GatewayProcess, gateway_command
from gateway.lab.lab import Lab

#: 192.0.2.1 stands in the file that ``init`` writes; nothing is sent to it.
TO_PROXY = (r"- \{to: direct\}", "- {to: proxy}")


class Router:
    """The ``gateway`` command on the lab's router."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.machine = lab.router
        self.config = directory / "gateway.yaml"
        self.run_dir = directory / "run"
        self._environment = {
            **ENVIRONMENT,
            "GATEWAY_CONFIG": str(self.config),
            "GATEWAY_RUN_DIR": str(self.run_dir),
        }

    def gateway(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.machine.run(
            gateway_command(*arguments), check=False, environment=self._environment
        )

    def ask(self, *arguments: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.gateway(*arguments, "--json").stdout)
        return answer

    def configure(self, *changes: tuple[str, str]) -> None:
        text = self.config.read_text()
        for pattern, replacement in changes:
            text, count = re.subn(pattern, replacement, text, count=1)
            assert count == 1, pattern
        self.config.write_text(text)

    def complaints(self) -> dict[str, str]:
        """What the doctor does not find in order, by name."""
        checks = self.ask("doctor")["checks"]
        return {check["name"]: check["status"] for check in checks if check["status"] != "ok"}


@pytest.fixture
def router(bare_lab: Lab, tmp_path: Path) -> Router:
    made = Router(bare_lab, tmp_path)
    done = made.gateway("init")
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_from_init_to_down(router: Router, backend: str) -> None:
    before = router.machine.snapshot()
    router.configure(TO_PROXY, ("backend: auto", f"backend: {backend}"))
    assert router.ask("check")["backend"] == backend

    up = router.gateway("up")
    assert up.returncode == 0, up.stderr
    assert "no listener runs" in up.stdout
    plan = router.ask("plan")
    assert plan["difference"] == ""
    assert [place["place"] for place in plan["placements"]] == ["kernel", "both"]
    assert router.gateway("up").stdout.startswith("nothing to do")

    status = router.gateway("status")
    assert status.returncode == 1
    assert "ip rules" in status.stdout
    assert "gateway down" in status.stdout

    assert router.gateway("down").returncode == 0
    router.machine.assert_unchanged(before)
    assert router.gateway("down").stdout.startswith("nothing to do")


def test_a_running_gateway_answers_and_holds_its_place(router: Router) -> None:
    before = router.machine.snapshot()
    router.configure(TO_PROXY)
    router.run_dir.mkdir()
    process = GatewayProcess(router.machine, "gateway", router.run_dir, router.config.read_text())
    router.config = process.config_path
    process.wait_ready()

    status = router.ask("status")
    assert (status["running"], status["state"], status["mode"]) == (True, "running", "tproxy")
    assert [o["name"] for o in status["outbounds"] if o["ok"]].count("proxy") == 1
    assert "LOOP GUARD" in router.gateway("status").stdout
    assert router.gateway("flows").stdout == "no flows\n"
    assert router.complaints() == {}

    for command in ("down", "up", "run"):
        refused = router.gateway(command)
        assert refused.returncode == 1, command
        assert f"process {process.process.pid}" in refused.stderr or "holds" in refused.stderr

    assert "nothing to change" in router.gateway("reload").stdout
    router.config.write_text(router.config.read_text() + "lna: 1\n")
    refused = router.gateway("reload")
    assert refused.returncode == 1
    assert "nothing was changed" in refused.stderr
    assert "lna: unknown key" in refused.stderr
    process.process.signal(signal.SIGHUP)
    process.process.wait_until(
        lambda: any("reload refused" in line for line in process.log), "SIGHUP to be answered"
    )

    assert process.stop() == 0
    router.machine.assert_unchanged(before)


def test_the_script_does_what_up_does(router: Router) -> None:
    before = router.machine.snapshot()
    router.configure(TO_PROXY)
    script = router.config.with_name("gateway.sh")
    script.write_text(router.gateway("plan", "--script").stdout)
    saved = {"GATEWAY_SAVED": str(router.config.with_name("saved"))}
    router.machine.run(["sh", str(script), "up"], environment=saved)
    assert router.ask("plan")["difference"] == ""
    router.machine.run(["sh", str(script), "down"], environment=saved)
    router.machine.assert_unchanged(before)


def test_a_loop_is_refused_before_anything_is_changed(router: Router) -> None:
    router.configure(TO_PROXY)
    # Somebody sends all marked packets, ours too, to a table where everything is local.
    for arguments in (
        "rule add pref 100 fwmark 0x02000000/0x0f000000 lookup 8801",
        "route add local default dev lo table 8801",
    ):
        router.machine.run(["ip", *arguments.split()])
    before = router.machine.snapshot()
    for command in ("check", "up", "run"):
        refused = router.gateway(command)
        assert refused.returncode == 1, command
        assert "outbound proxy" in refused.stderr
        assert "hint: " in refused.stderr
    router.machine.assert_unchanged(before)


NFT_HOST_FIREWALL = """
table inet hostfw {
    chain input { type filter hook input priority 0; policy drop; ct state established accept; }
    chain forward { type filter hook forward priority 0; policy drop; }
}
"""


def test_the_doctor_sees_what_stands_in_the_way(router: Router) -> None:
    run = router.machine.run
    run(["ip", "rule", "add", "pref", "8850", "lookup", "100"])
    run(["ip", "-6", "rule", "add", "pref", "50", "fwmark", "0x4000000/0xc000000", "lookup", "100"])
    run(["ip", "route", "add", "10.9.0.0/16", "dev", "lo", "table", "8802"])
    run(["nft", "-f", "-"], stdin=NFT_HOST_FIREWALL)
    server = [sys.executable, "-m", "http.server", "7895", "--bind", "127.0.0.1"]
    router.machine.start_listening("squatter", server, ("127.0.0.1", 7895))
    assert router.complaints() == {
        "ip rule priorities": "fail",
        "packet marks": "fail",
        "routing tables": "fail",
        "forward firewall": "warn",
        "port 7895": "fail",
    }
    router.configure((r"inbound:\n", "inbound:\n  host_firewall: leave\n"))
    text = router.gateway("doctor")
    assert text.returncode == 1
    assert re.search(r"^fail +input firewall +nft inet hostfw input ", text.stdout, re.MULTILINE)
