"""Packets that nobody can carry: written back as they came they go round, refused they end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from gateway.lab.capture import captured
from gateway.lab.cells import Cell, cell
from gateway.lab.lab import Lab
from gateway.lab.own_tun import tun_config
from gateway.lab.process import happens
from gateway.lab.topology import FAMILIES
from gateway.lab.trials import HOPS, Outcome, Seen, Unknown, try_all

_TECHNIQUE: Final = "end of a packet"
#: Nothing has come for so long: it is over (s).
_QUIET_S: Final = 0.3


def written_back(lab: Lab) -> Iterator[Cell]:
    """One packet of an unknown protocol, through a TUN whose program echoes it, and ours."""
    router, desk = lab.router, lab.client("desk")
    targets = dict(zip(FAMILIES, lab.topology.targets["web"], strict=True))
    for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        router.sysctl(key, "1")
    with captured(router, "suppress") as tun:
        for family, host in targets.items():
            packet = Unknown(desk, host)
            packet.connect()
            times = 0
            happens(tun.is_readable)  # the neighbours may have to be found
            while happens(tun.is_readable, _QUIET_S):
                times += tun.write_back(host)
            packet.close()
            round_and_round = times > HOPS // 2
            seen = Seen(Outcome.LOOP if round_and_round else Outcome.SILENT, f"{times} times")
            yield cell(_TECHNIQUE, "written back", family, Outcome.LOOP, seen, "")
    gateway = lab.start_gateway(tun_config(lab, capture="default-route"))

    def taken() -> int:
        shown = router.run(["ip", "-j", "-s", "link", "show", "gateway0"]).stdout
        return int(json.loads(shown)[0]["stats64"]["tx"]["packets"])

    for family, host in targets.items():
        before = taken()
        seen = try_all(desk, {"": host}, None, Unknown)[""]
        times = taken() - before
        if times != 1:
            seen = Seen(Outcome.LOOP, f"{times} times")
        yield cell(_TECHNIQUE, "refused", family, Outcome.REFUSED, seen, "")
    gateway.stop()
