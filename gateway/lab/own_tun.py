"""Our own TUN takes traffic by routing: each way, with its loop, and while the network changes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from gateway.lab.cells import Cell, cell, serve_socks, socks
from gateway.lab.gateway_process import ENVIRONMENT, GatewayProcess, gateway_command
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.storm import becomes
from gateway.lab.topology import FAMILIES, FamilyNumber
from gateway.lab.trials import Outcome, Seen, settle, try_all
from gateway.lab.uplink import Uplink
from gateway.marks import Marks

_USER: Final = 4243
#: Fake addresses of which nobody knows the name.
FAKE: Final = {4: "198.18.7.7", 6: "fd67:6174:6577:617a::7"}


def tun_config(lab: Lab, *rules: Mapping[str, Any], **tun: Any) -> dict[str, Any]:
    """Everything reaches the gateway through its TUN; ``home`` is a SOCKS server."""
    config = lab.config(*rules, {"to": "direct"}, outbounds={"home": lab.socks("home")})
    config["inbound"] = {"tcp": "tun", "udp": "tun", "icmp": "tun", "workers": 1}
    return config | {"tun": tun}


class OwnTun:
    """One lab; ``backend`` as for the gateway."""

    def __init__(self, lab: Lab, backend: str | None = None) -> None:
        self._lab = lab
        self._backend = backend
        self._router = lab.router
        self._hosts = dict(zip(FAMILIES, lab.topology.targets["web"], strict=True))
        self._proxied = dict(zip(FAMILIES, lab.topology.targets["mirror"], strict=True))
        self._uplink = Uplink(lab)
        self._home = dict(zip(FAMILIES, lab.topology.upstreams["home"].addresses, strict=True))

    # --- the whole default route --------------------------------------------------------------

    def default_route(self) -> Iterator[Cell]:
        """The ladder around our own TUN: LAN and own traffic, one direct, one through SOCKS."""
        config = tun_config(
            self._lab,
            {"destination": list(self._proxied.values()), "to": "home"},
            capture="default-route",
        )
        yield from self._naive("default-route", config, self._hosts)
        with self._gateway(config) as gateway:
            yield from self._both("captured", Outcome.DIRECT, gateway)
            self._uplink.other_router()
            yield from self._both("another router", Outcome.DIRECT, gateway)
            self._uplink.renew()
            yield from self._both("address renewed", Outcome.DIRECT, gateway)
            self._uplink.lose_default()
            yield from self._direct("default lost", Outcome.REFUSED, gateway)
            self._uplink.default()
            yield from self._both("default back", Outcome.DIRECT, gateway)
            self._uplink.down()
            yield from self._direct("link down", Outcome.REFUSED, gateway)
            self._uplink.up()
            yield from self._both("link up", Outcome.DIRECT, gateway)
            gateway.kill()
            yield from self._direct("killed, closed", Outcome.REFUSED, None)
            self._down(gateway)
            yield from self._direct("cleaned up", Outcome.DIRECT, None)
        config["inbound"]["on_failure"] = "open"
        with self._gateway(config) as gateway:
            gateway.kill()
            yield from self._direct("killed, open", Outcome.DIRECT, None)
            self._down(gateway)

    # --- prefixes and fake addresses -------------------------------------------------------------

    def prefixes(self) -> Iterator[Cell]:
        """Only what is written down is taken; a server in there is reached past the TUN."""
        serve_socks(self._lab, "blocked")
        servers = dict(zip(FAMILIES, self._lab.topology.targets["blocked"], strict=True))
        config = tun_config(
            self._lab,
            *({"destination": host, "to": f"taken{f}"} for f, host in self._proxied.items()),
            capture="prefixes",
            prefixes=[*self._proxied.values(), *servers.values()],
        )
        config["outbounds"] |= {f"taken{family}": socks(host) for family, host in servers.items()}
        yield from self._naive("prefixes", config, self._proxied)
        with self._gateway(config) as gateway:
            for family in FAMILIES:
                seen = self._counted(gateway, self._proxied[family], 1)
                peer = servers[family]
                yield cell("prefixes", "captured", family, Outcome.DIRECT, seen, peer)
            for family in FAMILIES:
                seen = self._counted(gateway, self._hosts[family], 0)
                peer = self._uplink.addresses[family]
                yield cell("prefixes", "another host", family, Outcome.DIRECT, seen, peer)

    def _counted(
        self, gateway: GatewayProcess, host: str, flows: int, client: Machine | None = None
    ) -> Seen:
        """What came of a connection (of this machine), which must be so many flows of ours."""

        def look() -> dict[str, Seen]:
            before = accepted(gateway)
            seen = try_all(client or self._router, {"": host}, None)
            count = accepted(gateway) - before
            return seen if count == flows else {"": Seen(Outcome.LOOP, f"{count} flows")}

        return settle(look, {"": Outcome.DIRECT})[""]

    # --- two subnets --------------------------------------------------------------------------

    def by_subnet(self) -> Iterator[Cell]:
        """What the LAN sends is told apart by its subnet: one is led into the device, or both."""
        proxied = {"destination": list(self._hosts.values()), "to": "home"}
        alike = tun_config(self._lab, proxied)
        apart = tun_config(self._lab, {"subnet": "kids", "to": "direct"}, proxied)
        desk, kid = self._lab.client("desk"), self._lab.client("kid")
        itself = dict(zip(FAMILIES, kid.spec.links[0].pair, strict=True))
        with self._gateway(alike) as gateway:
            for situation, config, kids, peers in (
                ("both captured", alike, 1, self._home),
                ("one captured", apart, 0, itself),
            ):
                gateway.reload(config)
                for name, client, flows, seen_as in (
                    ("office", desk, 1, self._home),
                    ("kids", kid, kids, peers),
                ):
                    for family, host in self._hosts.items():
                        seen = self._counted(gateway, host, flows, client)
                        technique, peer = f"subnet {name}", seen_as[family]
                        yield cell(technique, situation, family, Outcome.DIRECT, seen, peer)

    # --- a foreign program that netfilter marks ---------------------------------------------

    def marked_by_netfilter(self) -> Iterator[Cell]:
        """A rule of the owner's marks what a user sends; its source has been chosen before."""
        chain = f"type route hook output priority mangle; meta skuid {_USER} meta mark set"
        mark = f"{chain} meta mark & {Marks().bypass.keep:#x} | {Marks().bypass.value:#x}"
        source = 'type nat hook postrouting priority srcnat; oifname "wan0" masquerade'
        with self._gateway(tun_config(self._lab, capture="default-route")) as gateway:
            for situation, chains, expected, flows in (
                ("without", (), Outcome.DIRECT, 1),
                ("mark alone", (mark,), Outcome.SILENT, 0),
                ("and masqueraded", (mark, source), Outcome.DIRECT, 0),
            ):
                text = "".join(f"chain c{n} {{ {rule}\n}}\n" for n, rule in enumerate(chains))
                table = f"table inet owner {{}}\ndelete table inet owner\n{_table(text)}"
                self._router.run(["nft", "-f", "-"], stdin=table)
                for family in FAMILIES:
                    before = accepted(gateway)
                    seen = self._as_user(self._hosts[family], expected)
                    if accepted(gateway) - before != flows:
                        seen = Seen(Outcome.LOOP, "not the flows there should be")
                    peer = self._uplink.addresses[family]
                    yield cell("mark by netfilter", situation, family, expected, seen, peer)
            self._router.run(["nft", "delete", "table", "inet", "owner"])

    def _as_user(self, host: str, expected: Outcome) -> Seen:
        shown = f"[{host}]" if ":" in host else host
        patience = "2" if expected is Outcome.SILENT else "20"
        curl = ["curl", "-sgm", patience, f"http://{shown}/whoami"]
        done = self._router.run(
            ["setpriv", f"--reuid={_USER}", "--clear-groups", *curl], check=False
        )
        if done.returncode:
            return Seen(Outcome.SILENT)
        return Seen(Outcome.DIRECT, str(json.loads(done.stdout)["peer"]))

    # --- how ------------------------------------------------------------------------------------

    def _naive(
        self, technique: str, config: dict[str, Any], host: Mapping[FamilyNumber, str]
    ) -> Iterator[Cell]:
        """Unmarked, our own connection comes out of the TUN, and becomes another one, and so on."""
        for family in FAMILIES:
            looped = becomes(self._lab, config, host[family], backend=self._backend)
            yield cell(technique, "without", family, Outcome.LOOP, looped, "")

    @contextmanager
    def _gateway(self, config: dict[str, Any]) -> Iterator[GatewayProcess]:
        gateway = self._lab.start_gateway(config, backend=self._backend)
        try:
            yield gateway
        finally:
            if gateway.process.alive:
                gateway.stop()

    def _down(self, gateway: GatewayProcess) -> None:
        down = gateway_command("down", "--run-dir", str(gateway.run_dir))
        self._router.run(down, environment=ENVIRONMENT)

    def _both(self, situation: str, expected: Outcome, gateway: GatewayProcess) -> Iterator[Cell]:
        """A LAN host through SOCKS, and this machine itself, direct."""
        yield from self._direct(situation, expected, gateway)
        for family in FAMILIES:
            desk = self._lab.client("desk")
            seen = self._ask(desk, self._proxied[family], expected)
            peer = self._home[family]
            yield cell("default-route, LAN", situation, family, expected, seen, peer)

    def _direct(
        self, situation: str, expected: Outcome, gateway: GatewayProcess | None
    ) -> Iterator[Cell]:
        for family in FAMILIES:
            before = accepted(gateway) if gateway else 0
            seen = self._ask(self._router, self._hosts[family], expected)
            if gateway and accepted(gateway) - before > 50:
                seen = Seen(Outcome.LOOP, "more flows than were opened")
            peer = self._uplink.addresses[family]
            yield cell("default-route", situation, family, expected, seen, peer)

    @staticmethod
    def _ask(machine: Machine, host: str, expected: Outcome) -> Seen:
        return settle(lambda: try_all(machine, {"": host}, None), {"": expected})[""]


def accepted(gateway: GatewayProcess) -> int:
    """TCP flows so far."""
    return gateway.counters().get("flows_accepted", 0)


def _table(chains: str) -> str:
    return f"table inet owner {{\n{chains}}}\n"
