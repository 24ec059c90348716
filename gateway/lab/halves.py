"""Somebody's TUN has both halves of the main table: each strategy, while the network changes.

Another program's, as many VPNs do it, or our own (``tun.strategy: split_default``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

from gateway.lab.capture import Tun, captured
from gateway.lab.cells import Cell, cell, serve_socks, socks
from gateway.lab.gateway_process import ENVIRONMENT, GatewayProcess, gateway_command
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.namespaces import added, ip
from gateway.lab.process import happens
from gateway.lab.storm import NAIVE, becomes
from gateway.lab.topology import FAMILIES, FamilyNumber
from gateway.lab.topology import Machine as MachineSpec
from gateway.lab.trials import Asking, Outcome, Seen, settle, try_all
from gateway.lab.uplink import Uplink

#: A cable beside the WAN's, by its name at both ends: the far end, and the near one.
_CABLES: Final = {
    "phys0": {4: ("192.0.2.1/24", "192.0.2.2/24"), 6: ("2001:db8:2::1/64", "2001:db8:2::2/64")},
    "wan1": {4: ("100.64.7.1/24", "100.64.7.2/24"), 6: ("2001:db8:7::1/64", "2001:db8:7::2/64")},
}
#: Those that have no other way than the WAN's first cable, or than the second.
_FIRST: Final = ("device", "source")
SECOND: Final = ("device, other uplink", "source, other uplink")
#: Outbounds; each is asked for hosts of its own.
STRATEGIES: Final = ("mark", *_FIRST, *SECOND, "host_route", "netns")
BESIDES_MARK: Final = STRATEGIES[1:]
#: What the gateway says of each that is refused.
_WHY: Final = {
    "mark": "split_default has taken",
    "device": "no route to",
    "source": "wan0",
    "device, other uplink": "no route to",
    "source, other uplink": "wan1",
    "host_route": "default route",
    "netns": "network namespace",
}
#: Asked for by who has nothing but an address of the uplink.
_PLAIN: Final = "web"
_TUN: Final = "gateway0"

_Key = tuple[str, FamilyNumber]


class Halves:
    """One gateway with an outbound for each strategy; ``ours``: the TUN is its own."""

    def __init__(self, lab: Lab, backend: str | None = None, *, ours: bool) -> None:
        self._lab = lab
        self._backend = backend
        self._ours = ours
        self._uplink = Uplink(lab)
        self._server = "mirror"
        self._tun: Tun | None = None
        self._phys = Machine(
            MachineSpec("phys", (), ()),
            f"{lab.internet.namespace.removesuffix('internet')}phys",
            lab.directory,
        )
        form = {4: "198.51.100.{}", 6: "2001:db8:51::{}"}
        self._hosts: dict[_Key, str] = {
            (name, family): form[family].format(101 + index)
            for index, name in enumerate(STRATEGIES)
            for family in FAMILIES
        }
        self.gateway: GatewayProcess

    def run(self) -> Iterator[Cell]:
        """Each situation after the other; the network stays as the last one left it."""
        self._build()
        if self._ours:
            yield from self._unproved()
            self.gateway = self._lab.start_gateway(self._config(), backend=self._backend)
            yield from self._situations()
            self.gateway.kill()
            yield from self._plain("TUN gone", Outcome.DIRECT)
            down = gateway_command("down", "--run-dir", str(self.gateway.run_dir))
            self._lab.router.run(down, environment=ENVIRONMENT)
            return
        with captured(self._lab.router, "split_default") as self._tun:
            yield from self._plain("captured", Outcome.LOOP)
            self.gateway = self._lab.start_gateway(self._config(), backend=self._backend)
            yield from self._situations()
        self._tun = None
        yield from self._cells("TUN gone", dict.fromkeys(STRATEGIES, Outcome.DIRECT))
        self.gateway.stop()

    def _situations(self) -> Iterator[Cell]:
        uplink, router = self._uplink, self._lab.router
        works = dict.fromkeys(BESIDES_MARK, Outcome.DIRECT)
        # Its link is not there yet.
        unplugged = dict.fromkeys(SECOND, Outcome.REFUSED)
        one = works | unplugged
        lost = dict.fromkeys(BESIDES_MARK, Outcome.REFUSED) | {"netns": Outcome.DIRECT}
        astray = {"mark": Outcome.REFUSED if self._ours else Outcome.LOOP}
        yield from self._cells("captured", one | astray)
        uplink.other_router()
        yield from self._cells("another router", one)
        uplink.renew()
        yield from self._cells("address renewed", one)
        uplink.lose_default()
        yield from self._cells("default lost", lost)
        uplink.default()
        yield from self._cells("default back", one)
        uplink.down()
        yield from self._cells("link down", lost)
        uplink.up()
        yield from self._cells("link up", one)
        self._plug_in()
        yield from self._cells("another uplink", works)
        uplink.down()
        yield from self._cells("and the first lost", works | dict.fromkeys(_FIRST, Outcome.REFUSED))
        uplink.up()
        ip(["link del wan1"], router.namespace)
        yield from self._cells("unplugged", unplugged)
        self._plug_in()
        yield from self._cells("plugged in again", works)
        # A namespace takes its time to go, and its end of the cable with it; both ends go at once.
        ip(["link del phys0"], self._lab.internet.namespace)
        ip([f"netns del {self._phys.namespace}"])
        yield from self._cells("namespace gone", {"netns": Outcome.REFUSED})
        self._make_phys()
        yield from self._cells("namespace back", works)
        self._server = "blocked"
        self.gateway.reload(self._config())
        yield from self._cells("server moved", {"host_route": Outcome.DIRECT})
        if self._ours:
            ip([f"link del {_TUN}"], router.namespace)
            happens(self._is_captured)
            yield from self._cells("TUN removed", works)

    # --- what is tried --------------------------------------------------------------------------

    def _cells(self, situation: str, expected: Mapping[str, Outcome]) -> Iterator[Cell]:
        """Of a LAN host, all at once."""
        hosts = {key: host for key, host in self._hosts.items() if key[0] in expected}
        seen = settle(partial(self._look, hosts), {key: expected[key[0]] for key in hosts})
        for key in hosts:
            (name, family), found = key, seen[key]
            words = _WHY[name] if expected[name] is Outcome.REFUSED else ""
            if words and found.outcome is Outcome.REFUSED:
                found = Seen(Outcome.REFUSED, self._reason(key, words))
            yield cell(name, situation, family, expected[name], found, self._peer(key), words)

    def _look(self, hosts: Mapping[_Key, str]) -> dict[_Key, Seen]:
        """What comes of a flow each, and whether it was no more than one."""
        before = self._accepted()
        seen = try_all(self._lab.client("desk"), hosts, self._tun)
        more = self._accepted() - before - len(hosts)
        looped = Seen(Outcome.LOOP, f"{more} flows more than were opened")
        return dict.fromkeys(hosts, looped) if more > 0 else seen

    def _is_captured(self) -> bool:
        """Whether our own TUN is there again, with its routes."""
        shown = (
            self._lab.router.run(["ip", f"-{family}", "route", "show", "dev", _TUN], check=False)
            for family in FAMILIES
        )
        return all(done.stdout.count("/1 ") == 2 for done in shown)

    def _accepted(self) -> int:
        return self.gateway.counters().get("flows_accepted", 0)

    def _reason(self, key: _Key, words: str) -> str:
        """Why a flow is refused, by the gateway's own account: that of the guard, or the flow's."""
        said: list[str] = []

        def is_told() -> bool:
            outbound = _outbound(key)
            ways = self.gateway.control.get("/health")["outbounds"]
            ended = (f for f in self.gateway.flows() if self._hosts[key] in f["destination"])
            reasons = [way["reason"] for way in ways if way["name"] == outbound]
            # One way of a server, and one of each family where any may be asked for.
            reason = reasons[FAMILIES.index(key[1]) % len(reasons)]
            said[:] = [reason, *(flow["detail"] for flow in ended)]
            return any(words in each for each in said)

        happens(is_told)
        return next((each for each in said if words in each), "; ".join(filter(None, said)))

    def _plain(self, situation: str, expected: Outcome) -> Iterator[Cell]:
        """A program of the router's own that binds to an address of the uplink, and no more."""
        for family in FAMILIES:
            source = self._uplink.addresses[family]
            host = {"": self._lab.topology.targets[_PLAIN].of(family)}
            way = partial(Asking, source=source)
            look = partial(try_all, self._lab.router, host, self._tun, way)
            seen = settle(look, {"": expected})[""]
            yield cell("source address alone", situation, family, expected, seen, source)

    def _unproved(self) -> Iterator[Cell]:
        """Our own TUN, and an outbound that has nothing but the mark; the guard is not heard."""
        for family in FAMILIES:
            host, program = self._hosts["mark", family], (*NAIVE, "--marked")
            seen = becomes(self._lab, self._config(), host, backend=self._backend, program=program)
            yield cell("mark", "without", family, Outcome.LOOP, seen, "")

    def _peer(self, key: _Key) -> str:
        name, family = key
        near = {
            "host_route": self._lab.topology.targets[self._server].of(family),
            "netns": _bare(_CABLES["phys0"][family][1]),
            **dict.fromkeys(SECOND, _bare(_CABLES["wan1"][family][1])),
        }
        return near.get(name, self._uplink.addresses[family])

    # --- the network and the gateway ----------------------------------------------------------

    def _build(self) -> None:
        hosts = (added(host, "wan0") for host in self._hosts.values())
        ip(hosts, self._lab.internet.namespace)
        serve_socks(self._lab, "mirror", "blocked")
        self._make_phys()

    def _make_phys(self) -> None:
        """The namespace in which the outbound ``netns`` has its sockets made."""
        phys = self._lab.machines["phys"] = self._phys
        ip([f"netns add {phys.namespace}"])
        phys.run(["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"])
        self._join("phys0", phys)
        ip((f"route add default via {_bare(end[0])}" for end in _ends("phys0")), phys.namespace)

    def _plug_in(self) -> None:
        """Another uplink, whose default route is worse than the first one's."""
        self._join("wan1", self._lab.router)
        routes = (f"route add default via {_bare(end[0])} metric 2000" for end in _ends("wan1"))
        ip(routes, self._lab.router.namespace)

    def _join(self, cable: str, machine: Machine) -> None:
        """A cable between the internet and a machine."""
        both = (self._lab.internet, machine)
        sides = " type veth peer ".join(f"{cable} netns {end.namespace}" for end in both)
        ip([f"link add {sides}"])
        for side, end in enumerate(both):
            own = [added(pair[side], cable) for pair in _ends(cable)]
            ip([f"link set {cable} up", *own], end.namespace)

    def _config(self) -> dict[str, Any]:
        wan, other = ({"type": "direct", "interface": name} for name in ("wan0", "wan1"))
        outbounds: dict[str, Any] = {
            "mark": {"type": "direct", "route": "mark"},
            "device": {**wan, "route": "device"},
            "source": {**wan, "route": "source"},
            "device-other-uplink": {**other, "route": "device"},
            "source-other-uplink": {**other, "route": "source"},
            "netns": {"type": "direct", "netns": self._phys.namespace},
        }
        for family in FAMILIES:
            server = self._lab.topology.targets[self._server].of(family)
            outbounds[f"host_route{family}"] = socks(server, route="host_route")
        rules = [{"destination": h, "to": _outbound(key)} for key, h in self._hosts.items()]
        config = self._lab.config(*rules, {"to": "direct"}, outbounds=outbounds)
        if self._ours:
            ways = {"tcp": "tun", "udp": "tun", "icmp": "tun"}
            config["inbound"] = {**ways, "workers": 1, "on_failure": "open"}
            config["tun"] = {"capture": "default-route", "strategy": "split_default"}
        return config


def _outbound(key: _Key) -> str:
    name, family = key
    return f"{name}{family}" if name == "host_route" else name.replace(", ", "-").replace(" ", "-")


def _ends(cable: str) -> list[tuple[str, str]]:
    return list(_CABLES[cable].values())


def _bare(interface: str) -> str:
    return interface.partition("/")[0]
