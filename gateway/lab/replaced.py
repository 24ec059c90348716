"""A default route that somebody else has replaced, or outbid: what it takes of our own sockets.

Neither is a way of ours to capture traffic. The first loses the way out for everybody with the
program that did it; of the second, a rule drops what it found, and does not look further.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

from gateway.lab.capture import Asking, Outcome, Seen, Tun, settle, try_all
from gateway.lab.cells import SOCKS_PORT, Cell, cell, socks
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.namespaces import ip
from gateway.lab.process import wait_until
from gateway.lab.topology import FAMILIES, FamilyNumber
from gateway.marks import Marks

#: Outbounds; each is asked for a host of its own.
_WAYS = ("mark", "device", "followed", "host_route")
_HOSTS: Final = {4: "198.51.100.{}", 6: "2001:db8:51::{}"}
#: Where the SOCKS server is that has a route of its own, and where it moves to.
_SERVER, _ELSEWHERE = "mirror", "blocked"
_GROUP = 7
#: The rules that a mark leads to, one after another.
_FIRST, _SECOND, _LAST = 5000, 5001, 5002


def replaced_default(lab: Lab) -> Iterator[Cell]:
    """The default route is deleted, one into a TUN takes its place, and a server has its own."""
    router, desk = lab.router, lab.client("desk")
    _socks_servers(lab)
    wan = router.spec.link("wan").pair
    gateways = {route.to.version: str(route.via) for route in router.spec.routes}
    targets = {
        f"{name}{family}": _HOSTS[family].format(111 + index)
        for index, name in enumerate(_WAYS)
        for family in FAMILIES
    }
    ip((f"address add {host} dev wan0" for host in targets.values()), lab.internet.namespace)

    def cells(situation: str, expected: Mapping[str, Outcome], tun: Tun | None) -> Iterator[Cell]:
        asked = {k: v for k, v in targets.items() if k[:-1] in expected}
        wanted = {key: expected[key[:-1]] for key in asked}
        seen = settle(lambda: try_all(desk, asked, tun), wanted)
        for name, outcome in expected.items():
            for family, own in zip(FAMILIES, wan, strict=True):
                server = _host(lab, _SERVER, family)
                peer = own if name in ("mark", "device") else server
                yield cell(name, situation, family, outcome, seen[f"{name}{family}"], peer)

    tun = Tun(router, "vpn0")
    for family in FAMILIES:
        server = f"{_host(lab, _SERVER, family)}/{32 if family == 4 else 128}"
        _typed(router, family, f"route add {server} via {gateways[family]} dev wan0")
        _typed(router, family, "route replace default dev vpn0")
    gateway = lab.start_gateway(_config(lab, _SERVER, targets))
    strays = {
        "mark": Outcome.LOOP,
        "device": Outcome.REFUSED,
        "followed": Outcome.DIRECT,
        "host_route": Outcome.REFUSED,
    }
    yield from cells("captured", strays, tun)
    gateway.reload(_config(lab, _ELSEWHERE, targets))
    for family in FAMILIES:
        with Asking(desk, targets[f"followed{family}"]) as asking:
            asking.connect()
            server = _host(lab, _ELSEWHERE, family)
            wait_until(partial(_came_out, tun, server), "the gateway's own SYN")
        yield cell("followed", "server moved", family, Outcome.LOOP, Seen(Outcome.LOOP), "")
    tun.close()
    lost = dict.fromkeys(("mark", "device", "host_route"), Outcome.REFUSED)
    yield from cells("its program died", lost, None)
    gateway.reload(_config(lab, _SERVER, targets))
    ip((f"route add {r.to} via {r.via}" for r in router.spec.routes), router.namespace)
    yield from cells("default back", dict.fromkeys(_WAYS, Outcome.DIRECT), None)
    gateway.stop()


def _came_out(tun: Tun, host: str) -> bool:
    return host in tun.caught()


def _typed(router: Machine, family: FamilyNumber, line: str) -> None:
    router.run(["ip", f"-{family}", *line.split()])


def _host(lab: Lab, name: str, family: FamilyNumber) -> str:
    return lab.topology.targets[name].of(family)


def _socks_servers(lab: Lab) -> None:
    for name in (_SERVER, _ELSEWHERE):
        for family in FAMILIES:
            host = _host(lab, name, family)
            command = ["microsocks", "-i", host, "-p", str(SOCKS_PORT), "-b", host]
            lab.internet.start_listening(f"socks-{name}-{family}", command, (host, SOCKS_PORT))


def _config(lab: Lab, server: str, targets: Mapping[str, str]) -> dict[str, Any]:
    wan = {"type": "direct", "interface": "wan0"}
    outbounds: dict[str, Any] = {
        "mark": {"type": "direct", "route": "mark"},
        "device": {**wan, "route": "device"},
    }
    for family in FAMILIES:
        outbounds[f"followed{family}"] = socks(_host(lab, server, family), route="mark")
        own = socks(_host(lab, _SERVER, family), route="host_route", interface="wan0")
        outbounds[f"host_route{family}"] = own
    rules = [
        {"destination": host, "to": key if key in outbounds else key[:-1]}
        for key, host in targets.items()
    ]
    return lab.config(*rules, {"to": "direct"}, outbounds=outbounds)


def interface_group(lab: Lab) -> Iterator[Cell]:
    """Two default routes, the TUN's first, and a rule that drops it for what is marked."""
    router, desk = lab.router, lab.client("desk")
    wan = router.spec.link("wan").pair
    targets = dict(zip(("4", "6"), lab.topology.targets["web"], strict=True))
    gateways = {route.to.version: str(route.via) for route in router.spec.routes}
    mark = Marks().bypass
    rule = f"rule add fwmark {mark} priority"

    def each(*lines: str) -> None:
        for family in FAMILIES:
            for line in lines:
                _typed(router, family, line.format(via=gateways[family]))

    def cells(situation: str, expected: Outcome) -> Iterator[Cell]:
        seen = settle(lambda: try_all(desk, targets, tun), dict.fromkeys(targets, expected))
        for family, address in zip(FAMILIES, wan, strict=True):
            found = seen[str(family)]
            yield cell("suppress_ifgroup", situation, family, expected, found, address)

    tun = Tun(router, "vpn0")
    router.run(["ip", "link", "set", "vpn0", "group", str(_GROUP)])
    each(
        "route del default",
        "route add default via {via} dev wan0 metric 2000",
        "route add default dev vpn0 metric 5",
    )
    config = lab.config({"to": "out"}, outbounds={"out": {"type": "direct", "route": "mark"}})
    gateway = lab.start_gateway(config)
    yield from cells("without", Outcome.LOOP)
    each(f"{rule} {_FIRST} lookup main suppress_ifgroup {_GROUP}")
    yield from cells("alone", Outcome.LOOP)
    each("route add default via {via} dev wan0 table 253", f"{rule} {_SECOND} lookup 253")
    yield from cells("and a table", Outcome.DIRECT)
    each("route del default table 253")
    yield from cells("default lost", Outcome.LOOP)
    each(f"{rule} {_LAST} unreachable")
    yield from cells("lost, unreachable", Outcome.REFUSED)
    tun.close()
    gateway.stop()
