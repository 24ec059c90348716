"""Rule sets through the real gateway: fetched through SOCKS, kept, and read again by themselves."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from traffic import FAMILIES, address, command, curl, peer_seen, running, target, targets, upstream

from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.process import Process, wait_until

LISTS_PORT = 8080
NAME = "www.video.example"


class Lists:
    """A directory, and an HTTP server on the internet that serves it."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.directory = lab.directory / "lists"
        self.directory.mkdir(exist_ok=True)
        self._process: Process | None = None
        self._times = itertools.count(int(time.time()) - 3600)

    def write(self, name: str, *entries: str) -> None:
        """At once, and so that no two of them have the time of a change in common (HTTP's)."""
        fresh = self.directory / f"{name}.new"
        fresh.write_text("".join(f"{entry}\n" for entry in entries))
        changed = next(self._times)
        os.utime(fresh, (changed, changed))
        fresh.replace(self.directory / name)

    def start(self) -> None:
        directory = ("--directory", str(self.directory))
        serve = [sys.executable, "-um", "http.server", str(LISTS_PORT), "--bind", "::", *directory]
        machine = self._lab.internet
        self._process = machine.start_listening("lists", serve, ("", LISTS_PORT))

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None

    @property
    def asked(self) -> list[str]:
        """Its log: a line for each request, which begins with who asked."""
        log = [] if self._process is None else self._process.log
        return [line for line in log if '"GET ' in line]


@pytest.fixture
def lists(module_lab: Lab) -> Iterator[Lists]:
    served = Lists(module_lab)
    yield served
    served.stop()


def config(lab: Lab, **rule_sets: Any) -> dict[str, Any]:
    rules = [{"rule_set": name, "to": "home"} for name in rule_sets]
    return lab.config(*rules, {"to": "work"}) | {"rule_sets": rule_sets}


def url_set(lab: Lab, name: str, family: int = 4, via: str = "work") -> dict[str, Any]:
    host = target(lab, family)
    host = f"[{host}]" if family == 6 else host
    return {"type": "url", "url": f"http://{host}:{LISTS_PORT}/{name}", "via": via}


def ways(lab: Lab) -> set[str]:
    """By which upstream the desk's new flows go, to either family's address."""
    desk = lab.client("desk")
    seen = {peer_seen(desk, target(lab, family)) for family in FAMILIES}
    return {name for name in ("home", "work") if seen & upstream(lab, name)}


def wait_for_way(lab: Lab, way: str) -> None:
    wait_until(lambda: ways(lab) == {way}, f"flows to go by {way}", 60)


def test_a_list_is_fetched_through_socks_kept_and_used_without_the_network(
    module_lab: Lab, lists: Lists
) -> None:
    """The gateway starts without the list, takes it once it can be had, and keeps it.

    It asks through a group whose first member is dead.
    """
    lab = module_lab
    lists.write("far.txt", *targets(lab, "web"))
    wanted = config(lab, far=url_set(lab, "far.txt", family=6, via="any"))
    wanted["outbounds"]["gone"] = {**lab.socks("home"), "port": 9}
    wanted["outbounds"]["any"] = {"type": "fallback", "members": ["gone", "work"]}
    with running(lab, wanted) as gateway:
        assert ways(lab) == {"work"}
        assert gateway.counters()["rule_sets_empty"] == 1
        assert any("rule set far is empty" in line for line in gateway.log)
        wait_until(lambda: "rule_set_fetches_failed" in gateway.counters(), "a fetch to fail")
        lists.start()
        wait_for_way(lab, "home")
        asked_by = {line.split()[0] for line in lists.asked}
        assert asked_by
        assert asked_by <= upstream(lab, "work")
        assert "rule_sets_empty" not in gateway.counters()
        assert gateway.counters()["rule_set_fetches"] == 1
        lists.stop()
        gateway.stop()
        gateway.restart()
        assert ways(lab) == {"home"}
        assert "rule_sets_empty" not in gateway.counters()


def test_an_update_asks_only_for_what_changed(
    module_lab: Lab, lists: Lists, tmp_path: Path
) -> None:
    """`gateway rules update`, while the gateway runs, which takes what is new by itself."""
    lab = module_lab
    lists.write("names.txt", "+.elsewhere.example")
    lists.start()
    with running(lab, config(lab, names=url_set(lab, "names.txt", via="direct"))) as gateway:
        option = ("--config", str(gateway.config_path))
        wait_until(lambda: "rule_set_fetches" in gateway.counters(), "the list to be fetched")
        assert name_goes_by(lab) == "work"
        unchanged = command(lab, "rules", "update", *option, "--json")
        assert json.loads(unchanged.stdout)["results"] == {"names": "has not changed"}
        assert '" 304 ' in lists.asked[-1]
        assert lists.asked[-1].split()[0].removeprefix("::ffff:") == address(lab.router, 4, "wan")
        lists.write("names.txt", "+.video.example", "what is this")
        changed = command(lab, "rules", "update", "names", *option)
        assert changed.stdout == "names: fetched\n"
        wait_until(lambda: name_goes_by(lab) == "home", "the new list to be in force")
        lists.write("names.txt", "nothing that can be used")
        refused = command(lab, "rules", "update", "names", *option, check=False)
        assert refused.returncode == 1
        assert "nothing in it can be used" in refused.stdout
        assert name_goes_by(lab) == "home"
        listed = command(lab, "rules", "list", *option, "--json")
        (names,) = [s for s in json.loads(listed.stdout)["rule_sets"] if s["name"] == "names"]
        assert (names["names"], names["prefixes"]) == (1, 0)
        assert names["skipped"][0]["text"] == "what is this"


def name_goes_by(lab: Lab) -> str:
    """By which upstream a request goes whose name alone the rules ask for."""
    host = target(lab, 4)
    asked = curl(lab.client("desk"), f"http://{NAME}/whoami", "--resolve", f"{NAME}:80:{host}")
    peer = json.loads(asked.stdout)["peer"]
    return next(name for name in ("home", "work") if peer in upstream(lab, name))


def test_a_list_that_changes_on_disk_is_in_force_by_itself(
    module_lab: Lab, backend: str, lists: Lists
) -> None:
    """Also in the kernel's sets; a list that becomes bad leaves the last good one in force."""
    lab = module_lab
    path = lists.directory / "mine.txt"
    lists.write("mine.txt", "192.0.2.77")
    wanted = config(lab, mine={"type": "file", "path": str(path)})
    wanted["rules"][0]["to"] = "direct"
    desk = lab.client("desk")
    with running(lab, wanted, backend=backend) as gateway:
        assert ways(lab) == {"work"}
        lists.write("mine.txt", *targets(lab, "web"))
        own = {address(desk, family) for family in FAMILIES}
        wait_until(
            lambda: {peer_seen(desk, target(lab, family)) for family in FAMILIES} == own,
            "flows to be routed by the kernel",
        )
        lists.write("mine.txt", "nothing that can be used")
        wait_until(
            lambda: any("rule set mine stays as it was" in line for line in gateway.log),
            "the bad list to be refused",
        )
        assert {peer_seen(desk, target(lab, family)) for family in FAMILIES} == own
        assert_alive(gateway)


def assert_alive(gateway: GatewayProcess) -> None:
    assert gateway.process.alive
    assert not any("Traceback" in line for line in gateway.log)
