"""Uplinks whose default route somebody has taken: each strategy, while the network changes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Literal

from gateway.lab.capture import Outcome, Tun, settle, try_all
from gateway.lab.cells import SOCKS_PORT, Cell, cell, socks
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.namespaces import ip
from gateway.lab.storm import NAIVE
from gateway.lab.topology import FAMILIES, FamilyNumber
from gateway.lab.topology import Machine as MachineSpec
from gateway.marks import PRIORITY_BYPASS_END, TABLE_TUN, Marks
from gateway.plan.addresses import EVERYTHING, Family
from gateway.plan.capture import Capture, capture_routes, capture_rules
from gateway.plan.render_ip import route_line, rule_line

#: The other router of the WAN, the address of a renewed lease, and where the namespace is.
_OTHER_ROUTER: Final = {4: "203.0.113.254", 6: "2001:db8:113::fe"}
_RENEWED: Final = {4: "203.0.113.77", 6: "2001:db8:113::77"}
_PHYS: Final = {4: ("192.0.2.1", "192.0.2.2", 24), 6: ("2001:db8:2::1", "2001:db8:2::2", 64)}
_TABLE: Final = 200
_TAG: Final = re.compile(r" proto(col)? 0x67")

#: Outbounds of the first part; each is asked for hosts of its own.
STRATEGIES: Final = ("mark", "device", "source", "host_route", "netns")


# --- the main table is taken: 0/1 and 128/1 into a TUN, as many VPNs do it --------------------


class SplitDefault:
    """One gateway with an outbound for each strategy, and a TUN that has taken both halves."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._router, self._internet = lab.router, lab.internet
        self._peers: dict[tuple[str, int], str] = {}

    def run(self) -> Iterator[Cell]:
        """Each situation after the other; the network stays as the last one left it."""
        self._build()
        wan = self._lab.router.spec.link("wan").pair
        for family, address in zip(FAMILIES, wan, strict=True):
            for name in ("mark", "device", "source"):
                self._peers[name, family] = address
            self._peers["host_route", family] = self._server("mirror", family)
            self._peers["netns", family] = _PHYS[family][1]
        with _capture(self._router, "split_default") as tun:
            gateway = self._lab.start_gateway(self._config("mirror"))
            others = {name: Outcome.DIRECT for name in STRATEGIES if name != "mark"}
            yield from self._cells("captured", others | {"mark": Outcome.LOOP}, tun)
            self._other_router()
            yield from self._cells("another router", others, tun)
            self._renew()
            yield from self._cells("address renewed", others, tun)
            closed = dict.fromkeys(("device", "source", "host_route"), Outcome.REFUSED)
            self._router.run(["ip", "route", "del", "default"])
            self._router.run(["ip", "-6", "route", "del", "default"])
            yield from self._cells("default lost", closed | {"netns": Outcome.DIRECT}, tun)
            self._default(_OTHER_ROUTER)
            yield from self._cells("default back", others, tun)
            self._router.run(["ip", "link", "set", "wan0", "down"])
            yield from self._cells("link down", closed, tun)
            self._link_up()
            yield from self._cells("link up", others, tun)
            gateway.reload(self._config("blocked"))
            for family in FAMILIES:
                self._peers["host_route", family] = self._server("blocked", family)
            yield from self._cells("server moved", {"host_route": Outcome.DIRECT}, tun)
        everything = dict.fromkeys(STRATEGIES, Outcome.DIRECT)
        yield from self._cells("TUN gone", everything, None)
        gateway.stop()

    def _build(self) -> None:
        lab, internet = self._lab, self._internet
        for machine in (internet, self._router):
            machine.run(["sysctl", "-qw", "net.ipv4.conf.all.promote_secondaries=1"])
        ip((f"address add {h} dev wan0" for h in self._hosts().values()), internet.namespace)
        for name in ("mirror", "blocked"):
            for family in FAMILIES:
                host = self._server(name, family)
                command = ["microsocks", "-i", host, "-p", str(SOCKS_PORT), "-b", host]
                internet.start_listening(f"socks-{name}-{family}", command, (host, SOCKS_PORT))
        spec = MachineSpec("phys", (), ())
        phys = Machine(spec, f"{internet.namespace.removesuffix('internet')}phys", lab.directory)
        lab.machines["phys"] = phys
        ip([f"netns add {phys.namespace}"])
        phys.run(["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"])
        ends = (f"phys0 netns {machine.namespace}" for machine in (phys, internet))
        ip([f"link add {' type veth peer '.join(ends)}"])
        for machine, side in ((internet, 0), (phys, 1)):
            own = [f"address add {end[side]}/{end[2]} dev phys0" for end in _PHYS.values()]
            ip(["link set phys0 up", *own], machine.namespace)
        ip([f"route add default via {end[0]}" for end in _PHYS.values()], phys.namespace)
        self._phys = phys.namespace

    def _hosts(self) -> dict[tuple[str, FamilyNumber], str]:
        """An address on the internet for each strategy and family."""
        form = {4: "198.51.100.{}", 6: "2001:db8:51::{}"}
        return {
            (name, family): form[family].format(101 + index)
            for index, name in enumerate(STRATEGIES)
            for family in FAMILIES
        }

    def _server(self, name: str, family: FamilyNumber) -> str:
        return self._lab.topology.targets[name].of(family)

    def _config(self, server: str) -> dict[str, Any]:
        wan = {"type": "direct", "interface": "wan0"}
        outbounds: dict[str, Any] = {
            "mark": {"type": "direct", "route": "mark"},
            "device": {**wan, "route": "device"},
            "source": {**wan, "route": "source"},
            "netns": {"type": "direct", "netns": self._phys},
        }
        for family in FAMILIES:
            server_address = self._server(server, family)
            outbounds[f"host_route{family}"] = socks(server_address, route="host_route")
        rules = [
            {"destination": host, "to": f"{name}{family}" if name == "host_route" else name}
            for (name, family), host in self._hosts().items()
        ]
        return self._lab.config(*rules, {"to": "direct"}, outbounds=outbounds)

    def _cells(
        self, situation: str, expected: Mapping[str, Outcome], tun: Tun | None
    ) -> Iterator[Cell]:
        hosts = {key: host for key, host in self._hosts().items() if key[0] in expected}
        targets = {f"{name}{family}": host for (name, family), host in hosts.items()}
        wanted = {f"{name}{family}": expected[name] for name, family in hosts}
        desk = self._lab.client("desk")
        seen = settle(lambda: try_all(desk, targets, tun), wanted)
        for name, family in hosts:
            peer, at = self._peers[name, family], f"{name}{family}"
            yield cell(name, situation, family, expected[name], seen[at], peer)

    # --- what happens to the uplink ----------------------------------------------------------

    def _other_router(self) -> None:
        """The WAN's router is another one; the old one is gone."""
        old = self._internet.spec.link("wan").pair
        four, six = _OTHER_ROUTER.values()
        new = [f"address add {four}/24 dev wan0", f"address add {six}/64 dev wan0"]
        ip(new, self._internet.namespace)
        self._default(_OTHER_ROUTER, "replace")
        gone = [f"address del {old.ipv4}/24 dev wan0", f"address del {old.ipv6}/64 dev wan0"]
        ip(gone, self._internet.namespace)

    def _renew(self) -> None:
        """As a DHCP client does it: the old address goes, and the default route with it."""
        old = self._router.spec.link("wan").pair
        ip(
            [
                f"address del {old.ipv4}/24 dev wan0",
                f"address del {old.ipv6}/64 dev wan0",
                f"address add {_RENEWED[4]}/24 dev wan0",
                f"address add {_RENEWED[6]}/64 dev wan0",
            ],
            self._router.namespace,
        )
        self._default(_OTHER_ROUTER, "replace")
        for name in ("mark", "device", "source"):
            for family in FAMILIES:
                self._peers[name, family] = _RENEWED[family]

    def _default(self, router: Mapping[int, str], verb: str = "add") -> None:
        ip(
            (f"route {verb} default via {a} dev wan0" for a in router.values()),
            self._router.namespace,
        )

    def _link_up(self) -> None:
        """IPv6 addresses go with the link, and come back by themselves with a router's help."""
        self._router.run(["ip", "link", "set", "wan0", "up"])
        ip([f"address add {_RENEWED[6]}/64 dev wan0"], self._router.namespace)
        self._default(_OTHER_ROUTER)


# --- everything but what is marked goes into the TUN (the ladder) -----------------------------


def ladder(lab: Lab) -> Iterator[Cell]:
    """The ladder of ``plan.capture``: the mark leads past the TUN, and nowhere else."""
    targets = dict(zip(("4", "6"), lab.topology.targets["web"], strict=True))
    router, desk = lab.router, lab.client("desk")
    config = lab.config({"to": "out"}, outbounds={"out": {"type": "direct", "route": "mark"}})
    wan = router.spec.link("wan").pair

    def cells(situation: str, expected: Outcome, tun: Tun) -> Iterator[Cell]:
        seen = settle(lambda: try_all(desk, targets, tun), dict.fromkeys(targets, expected))
        for family, address in zip(FAMILIES, wan, strict=True):
            yield cell("mark + ladder", situation, family, expected, seen[str(family)], address)

    with _capture(router, "suppress") as tun:
        naive = lab.start_gateway(config, program=NAIVE)
        yield from cells("without", Outcome.LOOP, tun)
        naive.stop()
        gateway = lab.start_gateway(config)
        yield from cells("captured", Outcome.DIRECT, tun)
        for six in ("-4", "-6"):
            router.run(["ip", six, "route", "del", "default"])
        yield from cells("default lost", Outcome.REFUSED, tun)
        for six in ("-4", "-6"):
            router.run(["ip", six, "rule", "del", "priority", str(PRIORITY_BYPASS_END)])
        yield from cells("lost, no unreachable", Outcome.LOOP, tun)
        ip((str(f"route add {r.to} via {r.via}") for r in router.spec.routes), router.namespace)
        yield from cells("default back", Outcome.DIRECT, tun)
        gateway.stop()


@contextmanager
def _capture(router: Machine, kind: Literal["suppress", "split_default"]) -> Iterator[Tun]:
    """A TUN that has everything, made by another program: no tag and no table of ours."""
    tun = Tun(router, "vpn0")
    lines = []
    everything = Capture(tun.name, tuple(EVERYTHING.values()), kind, closed=False)
    lines += [route_line(route, "add") for route in capture_routes(everything, Family)]
    lines += [rule_line(rule, "add") for rule in capture_rules(everything, Family, Marks())]
    for line in lines:
        router.run(_TAG.sub("", line).replace(f" {TABLE_TUN}", f" {_TABLE}").split())
    try:
        yield tun
    finally:
        tun.close()
