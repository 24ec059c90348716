"""Own traffic of the gateway's machine, diverted: our sockets, and proxy programs beside us."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from gateway.errors import GatewayError
from gateway.lab.cells import SOCKS_PORT, Cell, cell, socks
from gateway.lab.gateway_process import GatewayProcess, gateway_command
from gateway.lab.lab import Lab
from gateway.lab.process import Process, happens, wait_until
from gateway.lab.storm import NAIVE, STORM, becomes, end_storm
from gateway.lab.topology import FAMILIES, FamilyNumber
from gateway.lab.trials import Asking, Outcome, Seen, Sending, try_all
from gateway.lab.uplink import Uplink

_LOOPBACK: Final = "127.0.0.1"
_USER: Final = 4242


def own_traffic(lab: Lab, backend: str | None = None) -> Iterator[Cell]:
    """TPROXY and REDIRECT of what this machine sends: unmarked, one flow becomes a storm."""
    targets = dict(zip(FAMILIES, lab.topology.targets["web"], strict=True))
    config = lab.config({"to": "home"}, outbounds={"home": lab.socks("home")})
    config["lan"]["this_machine"] = True
    config["inbound"]["workers"] = 1
    home = lab.topology.upstreams["home"].addresses
    for mode in ("tproxy", "redirect"):
        for family in FAMILIES:
            config["inbound"]["tcp"] = mode
            looped = becomes(lab, config, targets[family], backend=backend)
            yield cell(f"mark, {mode}", "without", family, Outcome.LOOP, looped, "")
        gateway = lab.start_gateway(config, backend=backend)
        seen = try_all(lab.router, targets, None)
        accepts = gateway.counters()["flows_accepted"]
        for family, peer in zip(FAMILIES, home, strict=True):
            once = seen[family] if accepts == len(targets) else Seen(Outcome.LOOP)
            yield cell(f"mark, {mode}", "diverted", family, Outcome.DIRECT, once, peer)
        gateway.stop()


def own_datagrams(lab: Lab) -> Iterator[Cell]:
    """Of what this machine sends, UDP by TPROXY: unmarked, one datagram goes round for ever."""
    targets = dict(zip(FAMILIES, lab.topology.targets["web"], strict=True))
    wan = dict(zip(FAMILIES, lab.router.spec.link("wan").pair, strict=True))
    rules = [{"destination": host, "to": f"out{family}"} for family, host in targets.items()]
    # From an address of their own: with the program's, they would be its flow.
    outbounds = {f"out{f}": {"type": "direct", "source": address} for f, address in wan.items()}
    config = lab.config(*rules, {"to": "direct"}, outbounds=outbounds)
    config["lan"]["this_machine"] = True
    config["inbound"] |= {"udp": "tproxy", "workers": 1}
    config["udp"] = {"flows": 2 * STORM}
    technique, way = "mark, tproxy, UDP", partial(Sending, lab.internet)
    for family, host in targets.items():
        naive = lab.start_gateway(config, program=NAIVE)
        seen = try_all(lab.router, {"": host}, None, way, 1.0)[""]
        if happens(partial(_is_storm, naive)):
            seen = Seen(Outcome.LOOP, "a storm of flows")
        end_storm(lab.router, naive)
        yield cell(technique, "without", family, Outcome.LOOP, seen, "")
    gateway = lab.start_gateway(config)
    seen_of = try_all(lab.router, targets, None, way)
    if _datagram_flows(gateway) > len(targets):
        seen_of = dict.fromkeys(targets, Seen(Outcome.LOOP, "more flows than were opened"))
    for family in FAMILIES:
        yield cell(technique, "diverted", family, Outcome.DIRECT, seen_of[family], wan[family])
    gateway.stop()


def _is_storm(gateway: GatewayProcess) -> bool:
    return _datagram_flows(gateway) > STORM


def _datagram_flows(gateway: GatewayProcess) -> int:
    """So far; 0 while it is too busy to say."""
    with suppress(GatewayError):
        return gateway.counters().get("udp_flows", 0)
    return 0


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
        seen = try_all(router, {"": host}, None, partial(Asking, device="wan0"), 1.0)[""]
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

    Without: the gateway runs already when it is started as somebody else, so that only the
    breaker can tell.
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
        yield from self._try("uid", "uid", self._config(uid=_USER))
        if self._group.possible:
            with self._group.made():
                config = self._config(cgroup=self._group.name)
                yield from self._try("cgroup", "cgroup", config)
        config = self._config(uid=_USER)
        config["inbound"] = {"tcp": "tun", "udp": "tun", "icmp": "tun", "workers": 1}
        config["tun"] = {"capture": "default-route"}
        yield from self._try("uid, TUN", "uid", config, self._without_uplink)

    def _config(self, **exempt: int | str) -> dict[str, Any]:
        local = socks(_LOOPBACK, **exempt)
        config = self._lab.config({"to": "local"}, outbounds={"local": local})
        config["lan"]["this_machine"] = True
        config["inbound"]["workers"] = 1
        return config

    def _try(
        self,
        technique: str,
        key: str,
        config: dict[str, Any],
        then: Callable[[str, GatewayProcess], Iterator[Cell]] | None = None,
    ) -> Iterator[Cell]:
        """``then``: what happens to the network while the program is told apart."""
        command = self._group.seen_by(gateway_command("run"))
        gateway = self._lab.start_gateway(config, backend=self._backend, program=command)
        for situation, expected in (("without", Outcome.LOOP), ("diverted", Outcome.DIRECT)):
            exempt = expected is Outcome.DIRECT
            program = self._program(technique, key, exempt=exempt)
            try:
                yield from self._cells(technique, situation, expected, gateway)
                if exempt and then is not None:
                    yield from then(technique, gateway)
            finally:
                # Whoever gives up in between leaves nobody in the group.
                program.kill()
        gateway.stop()

    def _without_uplink(self, technique: str, gateway: GatewayProcess) -> Iterator[Cell]:
        """The program is refused as we are, and comes back."""
        self._uplink.lose_default()
        yield from self._cells(technique, "default lost", Outcome.REFUSED, gateway)
        self._uplink.default()
        yield from self._cells(technique, "default back", Outcome.DIRECT, gateway)

    def _program(self, technique: str, key: str, *, exempt: bool) -> Process:
        command = ["microsocks", "-i", _LOOPBACK, "-p", str(SOCKS_PORT)]
        if key == "uid" and exempt:
            command = ["setpriv", f"--reuid={_USER}", "--clear-groups", *command]
        elif exempt:
            command = self._group.inside(command)
        name = f"program-{technique}-{exempt}"
        return self._lab.router.start_listening(name, command, (_LOOPBACK, SOCKS_PORT))

    def _cells(
        self, technique: str, situation: str, expected: Outcome, gateway: GatewayProcess
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
            # The breaker names what is missing.
            words = "`uid:` or `cgroup:`" if expected is Outcome.LOOP else ""
            yield cell(technique, situation, family, expected, seen, peer, words)


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
