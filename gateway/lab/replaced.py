"""A default route that somebody else has replaced: what it takes of our own sockets.

It is no way of ours to capture traffic: everybody's way out is lost with the program that did it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

from gateway.lab.capture import Tun
from gateway.lab.cells import Cell, cell, serve_socks, socks
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.namespaces import added, ip
from gateway.lab.process import happens
from gateway.lab.topology import FAMILIES, FamilyNumber
from gateway.lab.trials import Asking, Outcome, Seen, settle, try_all

#: Outbounds; each is asked for a host of its own.
_WAYS = ("mark", "device", "followed", "host_route")
_HOSTS: Final = {4: "198.51.100.{}", 6: "2001:db8:51::{}"}
#: Where the SOCKS server is that has a route of its own, and where it moves to.
_SERVER, _ELSEWHERE = "mirror", "blocked"


def replaced_default(lab: Lab) -> Iterator[Cell]:
    """The default route is deleted, one into a TUN takes its place, and a server has its own."""
    router, desk = lab.router, lab.client("desk")
    serve_socks(lab, _SERVER, _ELSEWHERE)
    wan = router.spec.link("wan").pair
    gateways = {route.to.version: str(route.via) for route in router.spec.routes}
    targets = {
        f"{name}{family}": _HOSTS[family].format(111 + index)
        for index, name in enumerate(_WAYS)
        for family in FAMILIES
    }
    ip((added(host, "wan0") for host in targets.values()), lab.internet.namespace)

    def cells(situation: str, expected: Mapping[str, Outcome], tun: Tun | None) -> Iterator[Cell]:
        asked = {k: v for k, v in targets.items() if k[:-1] in expected}
        wanted = {key: expected[key[:-1]] for key in asked}
        seen = settle(lambda: try_all(desk, asked, tun), wanted)
        for name, outcome in expected.items():
            for family, own in zip(FAMILIES, wan, strict=True):
                server = lab.topology.targets[_SERVER].of(family)
                peer = own if name in ("mark", "device") else server
                yield cell(name, situation, family, outcome, seen[f"{name}{family}"], peer)

    tun = Tun(router, "vpn0")
    for family in FAMILIES:
        server = f"{lab.topology.targets[_SERVER].of(family)}/{32 if family == 4 else 128}"
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
            server = lab.topology.targets[_ELSEWHERE].of(family)
            looped = happens(partial(_came_out, tun, server))
        seen = Seen(Outcome.LOOP if looped else Outcome.SILENT)
        yield cell("followed", "server moved", family, Outcome.LOOP, seen, "")
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


def _config(lab: Lab, server: str, targets: Mapping[str, str]) -> dict[str, Any]:
    wan = {"type": "direct", "interface": "wan0"}
    outbounds: dict[str, Any] = {
        "mark": {"type": "direct", "route": "mark"},
        "device": {**wan, "route": "device"},
    }
    for family in FAMILIES:
        outbounds[f"followed{family}"] = socks(
            lab.topology.targets[server].of(family), route="mark"
        )
        own = socks(lab.topology.targets[_SERVER].of(family), route="host_route", interface="wan0")
        outbounds[f"host_route{family}"] = own
    rules = [
        {"destination": host, "to": key if key in outbounds else key[:-1]}
        for key, host in targets.items()
    ]
    return lab.config(*rules, {"to": "direct"}, outbounds=outbounds)
