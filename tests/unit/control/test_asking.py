"""``gateway status``, ``flows`` and ``reload`` against a served fake, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.cli.main import cli
from gateway.control.running import OutboundHealth
from gateway.errors import CapabilityError, ChoiceError, ConfigError, Problem

from .conftest import GROUP, FakeRunning


def gateway(run_dir: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--run-dir", str(run_dir)])


def test_status_of_a_healthy_gateway(served: FakeRunning, run_dir: Path) -> None:
    result = gateway(run_dir, "status")
    assert result.exit_code == 0
    assert result.output == (
        "state          running for 1 h 2 min (process 4242)\n"
        "version        0.1.0\n"
        "configuration  /etc/gateway/gateway.yaml\n"
        "mode           tproxy\n"
        "backend        nftables: nftables works here\n"
        "flows          1\n"
        "\n"
        "OUTBOUND  TYPE    LOOP GUARD\n"
        "home      socks5  ok: mark: 203.0.113.5 via 203.0.113.1 dev eth0\n"
        "\n"
        "COUNTER       TOTAL\n"
        "accepted      12\n"
        "refused.loop  0\n"
    )


def test_status_as_json(served: FakeRunning, run_dir: Path) -> None:
    found = json.loads(gateway(run_dir, "status", "--json").output)
    assert found["running"] is True
    assert found["backend"] == "nftables"
    assert found["counters"] == {"accepted": 12, "refused.loop": 0}


def test_status_tells_a_monitor_of_a_refused_outbound(served: FakeRunning, run_dir: Path) -> None:
    served.outbounds = (
        OutboundHealth("vpn", "direct", ok=False, reason="it would loop", hint="use route: mark"),
    )
    result = gateway(run_dir, "status")
    assert result.exit_code == 1
    assert "REFUSED: it would loop; use route: mark" in result.output


def test_status_names_outbounds_without_udp(served: FakeRunning, run_dir: Path) -> None:
    served.without_udp = ("home", "work")
    assert "without UDP    home, work\n" in gateway(run_dir, "status").output


@pytest.mark.parametrize(("left", "hint"), [((), "gateway run"), (("4 ip rules",), "gateway down")])
def test_status_without_a_gateway(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, left: tuple[str, ...], hint: str
) -> None:
    monkeypatch.setattr("gateway.cli.leftovers.read_leftovers", lambda _: left)
    result = gateway(run_dir, "status")
    assert result.exit_code == 1
    assert "no gateway is running" in result.output
    assert hint in result.output.splitlines()[-1]
    assert all(phrase in result.output for phrase in left)
    found = json.loads(gateway(run_dir, "status", "--json").output)
    assert (found["running"], found["leftovers"]) == (False, list(left))


def test_status_says_what_it_may_not_see(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> tuple[str, ...]:
        raise CapabilityError("for root alone", "use sudo")

    monkeypatch.setattr("gateway.cli.leftovers.read_leftovers", refuse)
    result = gateway(run_dir, "status")
    assert result.exit_code == 1
    assert "is not known: for root alone; use sudo" in result.output


def test_flows(served: FakeRunning, run_dir: Path) -> None:
    lines = gateway(run_dir, "flows", "--recent", "1").output.splitlines()
    assert lines[0].split() == [
        *("ID", "CLIENT", "DESTINATION", "NAME", "RULE", "OUTBOUND"),
        *("STATE", "UP", "DOWN", "TIME"),
    ]
    assert lines[1] == (
        "7   192.168.20.5:40000  [2001:db8::1]:443  www.video.example"
        "  rules[2] subnet=kids -> home  home      relaying          1.5 kB  2.5 MB  1 min 1 s"
    )
    assert "upstream-refused" in lines[2]


def test_flows_as_json(served: FakeRunning, run_dir: Path) -> None:
    found = json.loads(gateway(run_dir, "flows", "--json").output)
    assert [flow["id"] for flow in found["flows"]] == [7]


def test_flows_without_a_gateway(run_dir: Path) -> None:
    result = gateway(run_dir, "flows")
    assert result.exit_code == 1
    assert "hint: start it with `gateway run`" in result.output


def test_reload(served: FakeRunning, run_dir: Path) -> None:
    assert gateway(run_dir, "reload").output == "rules[1] is new\n"
    assert json.loads(gateway(run_dir, "reload", "--json").output) == {
        "changes": ["rules[1] is new"]
    }
    served.changes = ()
    assert "the same" in gateway(run_dir, "reload").output
    assert served.reloads == 3


def test_reload_of_a_bad_file(served: FakeRunning, run_dir: Path) -> None:
    served.error = ConfigError((Problem("g.yaml", 3, 1, "lna", "unknown key", cure="`lan`?"),))
    result = gateway(run_dir, "reload")
    assert result.exit_code == 1
    assert "nothing was changed" in result.output
    assert "g.yaml:3:1: lna: unknown key" in result.output


def test_status_shows_groups(served: FakeRunning, run_dir: Path) -> None:
    served.known_groups = (GROUP,)
    assert (
        "GROUP  TYPE      TAKES  BECAUSE\n"
        "auto   fallback  away   the first that is well: 20 ms; home is down: refused\n"
    ) in gateway(run_dir, "status").output


def test_groups(served: FakeRunning, run_dir: Path) -> None:
    assert gateway(run_dir, "groups").output == "no groups\n"
    served.known_groups = (GROUP,)
    lines = gateway(run_dir, "groups").output.splitlines()
    assert lines[0].startswith("auto (fallback) takes away: the first that is well")
    home, away, direct = (line.split() for line in lines[1:])
    assert (home[:3], home[-4:]) == (["home", "down", "for"], ["12", "ms", ".x", "refused"])
    assert (away[:3], away[-3:]) == ([">", "away", "up"], ["20", "ms", "."])
    assert direct == ["direct", "unknown"]


def test_groups_as_json(served: FakeRunning, run_dir: Path) -> None:
    served.known_groups = (GROUP,)
    (found,) = json.loads(gateway(run_dir, "groups", "--json").output)["groups"]
    assert found["takes"] == ["away"]
    assert found["members"][0]["history"] == [
        {"at": 1.0, "ms": 12.0, "failure": ""},
        {"at": 2.0, "ms": 500.0, "failure": "refused"},
    ]


def test_select(served: FakeRunning, run_dir: Path) -> None:
    assert gateway(run_dir, "select", "auto", "a b&c").output == "auto takes away\n"
    assert served.selected == [("auto", "a b&c")]
    assert json.loads(gateway(run_dir, "select", "auto", "x", "--json").output)["name"] == "auto"


def test_what_cannot_be_selected(served: FakeRunning, run_dir: Path) -> None:
    served.error = ChoiceError("there is no group x", "groups: auto")
    result = gateway(run_dir, "select", "x", "y")
    assert result.exit_code == 1
    assert "there is no group x" in result.output
    assert "hint: groups: auto" in result.output
