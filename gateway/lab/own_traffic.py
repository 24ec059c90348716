"""Own traffic of the gateway's machine, diverted: our sockets, and proxy programs beside us."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, Literal

from gateway.lab.capture import Asking, Outcome, Seen, try_all
from gateway.lab.cells import SOCKS_PORT, Cell, cell, socks
from gateway.lab.gateway_process import GatewayProcess, gateway_command
from gateway.lab.lab import Lab
from gateway.lab.process import Process, wait_until
from gateway.lab.storm import NAIVE, end_storm, limit_descriptors, storm
from gateway.lab.topology import FAMILIES

_LOOPBACK: Final = "127.0.0.1"
_USER: Final = 4242


def own_traffic(lab: Lab, backend: str | None = None) -> Iterator[Cell]:
    """TPROXY and REDIRECT of what this machine sends: unmarked, one flow becomes a storm."""
    targets = dict(zip(("4", "6"), lab.topology.targets["web"], strict=True))
    config = lab.config({"to": "home"}, outbounds={"home": lab.socks("home")})
    config["lan"]["this_machine"] = True
    config["inbound"]["workers"] = 1
    home = lab.topology.upstreams["home"].addresses
    for mode in ("tproxy", "redirect"):
        for family in FAMILIES:
            naive = lab.start_gateway(config, backend=backend, mode=mode, program=NAIVE)
            limit_descriptors(lab.router, naive)
            with Asking(lab.router, targets[str(family)]) as asking:
                asking.connect()
                wait_until(partial(storm, naive), "the storm")
            end_storm(lab.router, naive)
            looped = Seen(Outcome.LOOP, "an accept storm")
            yield cell(f"mark, {mode}", "without", family, Outcome.LOOP, looped, "")
        gateway = lab.start_gateway(config, backend=backend, mode=mode)
        seen = try_all(lab.router, targets, None)
        accepts = gateway.counters()["flows_accepted"]
        for family, peer in zip(FAMILIES, home, strict=True):
            once = seen[str(family)] if accepts == len(targets) else Seen(Outcome.LOOP)
            yield cell(f"mark, {mode}", "diverted", family, Outcome.DIRECT, once, peer)
        gateway.stop()


class Programs:
    """A proxy program on the gateway's own machine, told by its user or its control group.

    Without: the gateway runs already when it is started as somebody else, so that only the
    breaker can tell.
    """

    def __init__(self, lab: Lab, backend: str | None = None) -> None:
        self._lab = lab
        self._backend = backend
        self._group = _ControlGroup(lab.router.namespace)

    @property
    def has_groups(self) -> bool:
        """Whether control groups (v2) can be tried on this machine."""
        return self._group.possible

    def run(self) -> Iterator[Cell]:
        """By user, and by control group where this machine has them (v2)."""
        yield from self._try("uid", _USER)
        if self._group.possible:
            with self._group.made():
                yield from self._try("cgroup", self._group.name)

    def _try(self, key: Literal["uid", "cgroup"], value: int | str) -> Iterator[Cell]:
        local = socks(_LOOPBACK, **{key: value})
        config = self._lab.config({"to": "local"}, outbounds={"local": local})
        config["lan"]["this_machine"] = True
        config["inbound"]["workers"] = 1
        command = self._group.seen_by(gateway_command("run"))
        gateway = self._lab.start_gateway(config, backend=self._backend, program=command)
        for situation, expected in (("without", Outcome.LOOP), ("diverted", Outcome.DIRECT)):
            program = self._program(key, exempt=expected is Outcome.DIRECT)
            yield from self._cells(key, situation, expected, gateway)
            program.stop()
        gateway.stop()

    def _program(self, key: str, *, exempt: bool) -> Process:
        command = ["microsocks", "-i", _LOOPBACK, "-p", str(SOCKS_PORT)]
        if key == "uid" and exempt:
            command = ["setpriv", f"--reuid={_USER}", "--clear-groups", *command]
        elif exempt:
            command = self._group.inside(command)
        name = f"program-{key}-{exempt}"
        return self._lab.router.start_listening(name, command, (_LOOPBACK, SOCKS_PORT))

    def _cells(
        self, key: str, situation: str, expected: Outcome, gateway: GatewayProcess
    ) -> Iterator[Cell]:
        """One flow of each family; the breaker has ended it where it is a loop."""
        router = self._lab.router
        hosts, own = self._lab.topology.targets["web"], router.spec.link("wan").pair
        for family, host, peer in zip(FAMILIES, hosts, own, strict=True):
            before = gateway.counters()
            seen = try_all(router, {"": host}, None)[""]
            after = gateway.counters()
            if after.get("closed_loop", 0) > before.get("closed_loop", 0):
                broken = next(f for f in gateway.flows() if f["close_reason"] == "loop")
                seen = Seen(Outcome.LOOP, broken["detail"])
            elif after["flows_accepted"] != before.get("flows_accepted", 0) + 1:
                seen = Seen(Outcome.LOOP, "more than one flow")
            yield cell(key, situation, family, expected, seen, peer)


class _ControlGroup:
    """A control group (v2), and how processes of a lab's machine see it.

    ``ip netns exec`` mounts /sys anew, without the hierarchy.
    """

    _MOUNT: Final = 'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
    _ENTER: Final = 'echo 0 > "/sys/fs/cgroup/$0/cgroup.procs" && exec "$@"'

    def __init__(self, name: str) -> None:
        self.name = name
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
        roots = [line.split()[1] for line in mounts if line.split()[2] == "cgroup2"]
        self._path = Path(roots[0]) / name if roots else None

    @property
    def possible(self) -> bool:
        """Whether this machine has them."""
        return self._path is not None

    @contextmanager
    def made(self) -> Iterator[None]:
        """There for a while; nobody may be left in it at the end."""
        assert self._path is not None
        self._path.mkdir()
        try:
            yield
        finally:
            wait_until(self._is_removed, f"{self._path} to be left by all")

    def _is_removed(self) -> bool:
        assert self._path is not None
        try:
            self._path.rmdir()
        except OSError:
            return False
        return True

    def seen_by(self, command: list[str]) -> list[str]:
        """The command, run where the hierarchy is mounted."""
        return ["sh", "-c", self._MOUNT, "sh", *command] if self.possible else command

    def inside(self, command: list[str]) -> list[str]:
        """The command, run in the group."""
        return self.seen_by(["sh", "-c", self._ENTER, self.name, *command])
