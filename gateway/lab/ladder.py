"""Another program's TUN has all but what is marked: each kind of socket, with its mark or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from gateway.lab.capture import Tun, captured
from gateway.lab.cells import Cell, cell
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.process import happens
from gateway.lab.storm import NAIVE
from gateway.lab.topology import FAMILIES, FamilyNumber
from gateway.lab.trials import Asking, Outcome, Pinging, Seen, Sending, Trial, settle, try_all
from gateway.lab.uplink import Uplink
from gateway.marks import PRIORITY_BYPASS_END

_TECHNIQUE: Final = "mark + ladder"
_UDP: Final = ", UDP"


def ladder(lab: Lab) -> Iterator[Cell]:
    """The ladder of ``plan.capture``: the mark leads past the TUN, and nowhere else."""
    tries = _Ladder(lab)
    uplink = Uplink(lab)
    with captured(lab.router, "suppress") as tun:
        naive = lab.start_gateway(tries.config, program=NAIVE)
        yield from tries.cells("without", Outcome.LOOP, tun)
        yield from tries.probes("without", Outcome.LOOP, lambda: tries.strayed(tun))
        naive.stop()
        gateway = lab.start_gateway(tries.config)
        yield from tries.cells("captured", Outcome.DIRECT, tun)
        yield from tries.probes("captured", Outcome.DIRECT, lambda: _probed(gateway))
        uplink.lose_default()
        yield from tries.cells("default lost", Outcome.REFUSED, tun)
        for six in ("-4", "-6"):
            rung = ["ip", six, "rule", "del", "priority", str(PRIORITY_BYPASS_END)]
            lab.router.run(rung)
        yield from tries.cells("lost, no unreachable", Outcome.LOOP, tun)
        uplink.default()
        yield from tries.cells("default back", Outcome.DIRECT, tun)
        gateway.stop()


class _Ladder:
    """Flows of a LAN host to one server, and probes of a group to another."""

    def __init__(self, lab: Lab) -> None:
        self._desk = lab.client("desk")
        self._targets = dict(zip(FAMILIES, lab.topology.targets["web"], strict=True))
        self._probed = dict(zip(FAMILIES, lab.topology.targets["mirror"], strict=True))
        self._own = dict(zip(FAMILIES, lab.router.spec.link("wan").pair, strict=True))
        self._astray: set[str] = set()
        self._ways: dict[str, Callable[[Machine, str], Trial]] = {
            "": Asking,
            _UDP: partial(Sending, lab.internet),
            ", ping": Pinging,
        }
        self.config = lab.config({"to": "out"}, outbounds=self._outbounds())
        self.config["inbound"] = {"udp": "tproxy", "icmp": "tun", "workers": 1}

    def _outbounds(self) -> dict[str, Any]:
        groups = {
            f"probed{family}": {
                "type": "fallback",
                "members": ["out"],
                "probe": {"url": f"http://{_shown(host)}/whoami", "every": 1, "lazy": False},
            }
            for family, host in self._probed.items()
        }
        return {"out": {"type": "direct", "route": "mark"}, **groups}

    def cells(self, situation: str, told: Outcome, tun: Tun) -> Iterator[Cell]:
        """TCP, datagrams and echo."""
        for kind, way in self._ways.items():
            # Whose datagram finds no way is not told: it is dropped, and counted.
            expected = Outcome.SILENT if (told, kind) == (Outcome.REFUSED, _UDP) else told
            patience = 1.0 if expected is Outcome.SILENT else 20.0
            look = partial(try_all, self._desk, self._targets, tun, way, patience)
            seen = settle(look, dict.fromkeys(FAMILIES, expected))
            for family in FAMILIES:
                # An echo does not tell who has asked.
                peer = "" if way is Pinging else self._own[family]
                technique = f"{_TECHNIQUE}{kind}"
                yield cell(technique, situation, family, expected, seen[family], peer)

    def probes(
        self, situation: str, expected: Outcome, found: Callable[[], set[FamilyNumber]]
    ) -> Iterator[Cell]:
        """The gateway's own, of the families that are ``found``."""
        last: set[FamilyNumber] = set()

        def all_are() -> bool:
            last.clear()
            last.update(found())  # a later probe may go wrong
            return last == {*FAMILIES}

        happens(all_are)
        for family in FAMILIES:
            seen = Seen(expected if family in last else Outcome.SILENT)
            yield cell(f"{_TECHNIQUE}, probe", situation, family, expected, seen, "")

    def strayed(self, tun: Tun) -> set[FamilyNumber]:
        """Whose probes came out of the TUN."""
        self._astray |= tun.caught()
        return {family for family, host in self._probed.items() if host in self._astray}


def _probed(gateway: GatewayProcess) -> set[FamilyNumber]:
    """Whose probes were answered."""
    groups = gateway.control.get("/groups")["groups"]
    up = {group["name"] for group in groups if group["members"][0]["state"] == "up"}
    return {family for family in FAMILIES if f"probed{family}" in up}


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
