"""Two default routes, another program's TUN before the uplink, by their metrics.

No way of ours to capture traffic: a route with a better metric still takes it away again. The
rule that drops what is found behind a group of interfaces does not look further by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from gateway.lab.capture import Tun
from gateway.lab.cells import Cell, cell, serve_socks, socks
from gateway.lab.lab import Lab
from gateway.lab.topology import FAMILIES
from gateway.lab.trials import Outcome, settle, try_all
from gateway.marks import Marks

#: Outbounds, and the host that each is asked for; the last one's is its SOCKS server, too.
_HOSTS: Final = {"mark": "web", "device": "blocked", "host_route": "mirror"}
_SERVER: Final = _HOSTS["host_route"]
_GROUP: Final = 7
#: The rules that a mark leads to, one after another.
_FIRST, _SECOND, _LAST = 5000, 5001, 5002


def outbid(lab: Lab) -> Iterator[Cell]:
    """Each strategy beside a better default route, and a rule that drops that route."""
    tries = _Outbid(lab)
    yield from _by_metrics(tries)
    yield from _by_group(tries)
    tries.end()


def _by_metrics(tries: _Outbid) -> Iterator[Cell]:
    yield from tries.cells("outbid", Outcome.LOOP, "mark")
    yield from tries.cells("outbid", Outcome.DIRECT, "device", "host_route")
    tries.typed("route add default via {via} dev wan0 metric 1")
    yield from tries.cells("outbid in turn", Outcome.DIRECT, *_HOSTS)
    tries.typed("route del default via {via} dev wan0 metric 1")


def _by_group(tries: _Outbid) -> Iterator[Cell]:
    cells = partial(tries.cells, technique="suppress_ifgroup")
    rule = f"rule add fwmark {Marks().bypass} priority"
    yield from cells("outbid", Outcome.LOOP)
    tries.typed(f"{rule} {_FIRST} lookup main suppress_ifgroup {_GROUP}")
    yield from cells("the rule alone", Outcome.LOOP)
    tries.typed("route add default via {via} dev wan0 table 253", f"{rule} {_SECOND} lookup 253")
    yield from cells("and a table", Outcome.DIRECT)
    tries.typed("route del default table 253")
    yield from cells("default lost", Outcome.LOOP)
    tries.typed(f"{rule} {_LAST} unreachable")
    yield from cells("lost, unreachable", Outcome.REFUSED)


class _Outbid:
    """A gateway beside a TUN whose default route is the better one."""

    def __init__(self, lab: Lab) -> None:
        self._lab, self._router = lab, lab.router
        self._wan = dict(zip(FAMILIES, lab.router.spec.link("wan").pair, strict=True))
        self._via = {route.to.version: str(route.via) for route in lab.router.spec.routes}
        serve_socks(lab, _SERVER)
        self._tun = Tun(self._router, "vpn0")
        self._router.run(["ip", "link", "set", self._tun.name, "group", str(_GROUP)])
        self.typed(
            "route del default",
            "route add default via {via} dev wan0 metric 2000",
            f"route add default dev {self._tun.name} metric 5",
        )
        self._gateway = lab.start_gateway(self._config())

    def end(self) -> None:
        """The TUN goes, and the gateway."""
        self._tun.close()
        self._gateway.stop()

    def typed(self, *lines: str) -> None:
        """As ``ip`` takes them, for both families."""
        for family in FAMILIES:
            for line in lines:
                words = line.format(via=self._via[family]).split()
                self._router.run(["ip", f"-{family}", *words])

    def cells(
        self, situation: str, expected: Outcome, *ways: str, technique: str = ""
    ) -> Iterator[Cell]:
        """Flows by these ways, ``mark`` if none is said, all at once."""
        keys = [(way, family) for way in ways or ("mark",) for family in FAMILIES]
        hosts = {
            (way, family): self._lab.topology.targets[_HOSTS[way]].of(family)
            for way, family in keys
        }
        look = partial(try_all, self._lab.client("desk"), hosts, self._tun)
        seen = settle(look, dict.fromkeys(hosts, expected))
        for way, family in keys:
            peer = hosts[way, family] if way == "host_route" else self._wan[family]
            found = seen[way, family]
            yield cell(technique or way, situation, family, expected, found, peer)

    def _config(self) -> dict[str, Any]:
        outbounds: dict[str, Any] = {
            "mark": {"type": "direct", "route": "mark"},
            "device": {"type": "direct", "route": "device", "interface": "wan0"},
        }
        rules = []
        for family in FAMILIES:
            server = self._lab.topology.targets[_SERVER].of(family)
            outbounds[f"host_route{family}"] = socks(server, route="host_route")
            rules += [
                {
                    "destination": self._lab.topology.targets[host].of(family),
                    "to": f"{way}{family}" if way == "host_route" else way,
                }
                for way, host in _HOSTS.items()
            ]
        return self._lab.config(*rules, {"to": "direct"}, outbounds=outbounds)
