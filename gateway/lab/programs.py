"""Proxies on the gateway's own machine: programs beside us, whose own traffic is diverted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from gateway.lab.cells import SOCKS_PORT, Cell, cell, socks
from gateway.lab.gateway_process import GatewayProcess, gateway_command
from gateway.lab.lab import Lab
from gateway.lab.process import happens, wait_until
from gateway.lab.storm import NAIVE
from gateway.lab.topology import FAMILIES, FamilyNumber
from gateway.lab.trials import Asking, Outcome, Seen, settle, try_all
from gateway.lab.uplink import Uplink

_LOOPBACK: Final = "127.0.0.1"
_USER: Final = 4242
_SERVER: Final = ("microsocks", "-i", _LOOPBACK, "-p", str(SOCKS_PORT))


def server_here(lab: Lab) -> Iterator[Cell]:
    """A SOCKS server on loopback: a socket that is bound to the uplink cannot reach it."""
    router = lab.router
    wan = dict(zip(FAMILIES, router.spec.link("wan").pair, strict=True))
    here: dict[FamilyNumber, str] = {4: _LOOPBACK, 6: "::1"}
    outbounds: dict[str, Any] = {}
    rules = []
    for family, host in here.items():
        command = ["microsocks", "-i", host, "-p", str(SOCKS_PORT)]
        router.start_listening(f"here-{family}", command, (host, SOCKS_PORT))
        for name, route, target in (("auto", "auto", "web"), ("device", "device", "mirror")):
            outbound = f"{name}{family}"
            outbounds[outbound] = socks(host, route=route, interface="wan0")
            rules.append({"destination": lab.topology.targets[target].of(family), "to": outbound})
    for family, host in here.items():
        bound = partial(try_all, router, {"": host}, None, partial(Asking, device="wan0"), 1.0)
        seen = settle(bound, {"": Outcome.SILENT})[""]
        yield cell("device", "bound, no gateway", family, Outcome.SILENT, seen, "")
    gateway = lab.start_gateway(lab.config(*rules, {"to": "direct"}, outbounds=outbounds))
    for name, target, expected in (
        ("auto", "web", Outcome.DIRECT),
        ("device", "mirror", Outcome.REFUSED),
    ):
        for family in FAMILIES:
            host = lab.topology.targets[target].of(family)
            seen = try_all(lab.client("desk"), {"": host}, None)[""]
            if seen.outcome is Outcome.REFUSED:
                (flow,) = (f for f in gateway.flows() if host in f["destination"])
                seen = Seen(Outcome.REFUSED, flow["detail"])
            words = "is this machine's own" if expected is Outcome.REFUSED else ""
            yield cell(name, "on loopback", family, expected, seen, wan[family], words)
    gateway.stop()


class Programs:
    """A proxy program on the gateway's own machine, told by its user or its control group.

    Without: nobody asks who it runs as, so that only the breaker can tell.
    """

    def __init__(self, lab: Lab, backend: str | None = None) -> None:
        self._lab = lab
        self._backend = backend
        self._uplink = Uplink(lab)
        self._group = _ControlGroup(lab.router.namespace)

    @property
    def has_groups(self) -> bool:
        """Whether control groups (v2) can be tried on this machine."""
        return self._group.possible

    def run(self) -> Iterator[Cell]:
        """By user, and by control group where this machine has them (v2); past our own TUN."""
        command = ["setpriv", f"--reuid={_USER}", "--clear-groups", *_SERVER]
        yield from self._try("uid", self._config(uid=_USER), command)
        if self._group.possible:
            with self._group.made():
                config = self._config(cgroup=self._group.name)
                yield from self._try("cgroup", config, self._group.inside(_SERVER))
        config = self._config(uid=_USER)
        config["inbound"] = {"tcp": "tun", "udp": "tun", "icmp": "tun", "workers": 1}
        config["tun"] = {"capture": "default-route"}
        yield from self._try("uid, TUN", config, command)

    def _config(self, **exempt: int | str) -> dict[str, Any]:
        local = socks(_LOOPBACK, **exempt)
        config = self._lab.config({"to": "local"}, outbounds={"local": local})
        config["lan"]["this_machine"] = True
        config["inbound"]["workers"] = 1
        return config

    def _try(self, technique: str, config: dict[str, Any], exempt: Sequence[str]) -> Iterator[Cell]:
        """``exempt``: how the program is started so that it is known."""
        unheard = (*NAIVE, "--marked", "--detect-loops")
        with self._program(technique, "unknown", _SERVER):
            gateway = self._gateway(config, unheard)
            words = "`uid:` or `cgroup:`"  # the breaker names what is missing
            yield from self._cells(technique, "without", Outcome.LOOP, gateway, words)
            gateway.stop()
            gateway = self._gateway(config, gateway_command("run"))
            if "uid" in technique:
                words = "runs as user 0"
                yield from self._cells(technique, "as another", Outcome.REFUSED, gateway, words)
        with self._program(technique, "known", exempt):
            yield from self._cells(technique, "diverted", Outcome.DIRECT, gateway)
            if technique == "uid, TUN":
                self._uplink.lose_default()
                yield from self._cells(technique, "default lost", Outcome.REFUSED, gateway)
                self._uplink.default()
                yield from self._cells(technique, "default back", Outcome.DIRECT, gateway)
        if technique == "cgroup":
            before = _repairs(gateway)
            self._group.renew()
            happens(lambda: _repairs(gateway) > before)
            with self._program(technique, "again", exempt):
                yield from self._cells(technique, "made again", Outcome.DIRECT, gateway)
        gateway.stop()

    def _gateway(self, config: dict[str, Any], command: Sequence[str]) -> GatewayProcess:
        program = self._group.seen_by(command)
        return self._lab.start_gateway(config, backend=self._backend, program=program)

    @contextmanager
    def _program(self, technique: str, who: str, command: Sequence[str]) -> Iterator[None]:
        """There for a while; whoever gives up in between leaves nobody in the group."""
        name = f"program-{technique}-{who}"
        listening = (_LOOPBACK, SOCKS_PORT)
        program = self._lab.router.start_listening(name, command, listening)
        try:
            yield
        finally:
            program.kill()

    def _cells(
        self,
        technique: str,
        situation: str,
        expected: Outcome,
        gateway: GatewayProcess,
        words: str = "",
    ) -> Iterator[Cell]:
        """One flow of each family."""
        router = self._lab.router
        hosts, own = self._lab.topology.targets["web"], router.spec.link("wan").pair
        for family in FAMILIES:
            look = partial(self._look, gateway, hosts.of(family))
            seen = settle(look, {"": expected})[""]
            yield cell(technique, situation, family, expected, seen, own.of(family), words)

    def _look(self, gateway: GatewayProcess, host: str) -> dict[str, Seen]:
        """What comes of a flow, by the gateway's account where it has ended it."""
        before = gateway.counters()
        seen = try_all(self._lab.router, {"": host}, None)[""]
        after = gateway.counters()
        ended = [flow for flow in gateway.flows() if flow["detail"]]
        if after.get("closed_loop", 0) > before.get("closed_loop", 0):
            loop = next(flow for flow in ended if flow["close_reason"] == "loop")
            seen = Seen(Outcome.LOOP, loop["detail"])
        elif after["flows_accepted"] != before.get("flows_accepted", 0) + 1:
            seen = Seen(Outcome.LOOP, "more than one flow")
        elif seen.outcome is Outcome.REFUSED and ended:
            seen = Seen(Outcome.REFUSED, ended[0]["detail"])
        return {"": seen}


def _repairs(gateway: GatewayProcess) -> int:
    return sum(" repaired " in line for line in gateway.log)


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

    def renew(self) -> None:
        """As when a service is started again: another one has its name."""
        assert self._path is not None
        wait_until(self._is_removed, f"{self._path} to be left by all")
        self._path.mkdir()

    def _is_removed(self) -> bool:
        assert self._path is not None
        try:
            self._path.rmdir()
        except OSError:
            return False
        return True

    def seen_by(self, command: Sequence[str]) -> Sequence[str]:
        """The command, run where the hierarchy is mounted."""
        return ["sh", "-c", self._MOUNT, "sh", *command] if self.possible else command

    def inside(self, command: Sequence[str]) -> Sequence[str]:
        """The command, run in the group."""
        return self.seen_by(["sh", "-c", self._ENTER, self.name, *command])
