"""Packets that nobody can carry: written back as they came they go round, refused they end."""

from __future__ import annotations

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
#: Counts those that the router sends into our own TUN, where the kernel sends some, too.
_COUNTER: Final = """
table inet taken {
    chain sent {
        type filter hook postrouting priority 0
        oifname "gateway0" meta l4proto gre counter
    }
}
"""


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
            while times <= HOPS // 2 and happens(tun.is_readable):
                times += tun.write_back(host)
            packet.close()
            round_and_round = times > HOPS // 2
            seen = Seen(Outcome.LOOP if round_and_round else Outcome.SILENT, f"{times} times")
            yield cell(_TECHNIQUE, "written back", family, Outcome.LOOP, seen, "")
    gateway = lab.start_gateway(tun_config(lab, capture="default-route"))

    router.run(["nft", "-f", "-"], stdin=_COUNTER)

    def taken() -> int:
        shown = router.run(["nft", "list", "table", "inet", "taken"]).stdout
        return int(shown.partition("packets ")[2].split()[0])

    for family, host in targets.items():
        before = taken()
        seen = try_all(desk, {"": host}, None, Unknown)[""]
        times = taken() - before
        if times != 1:
            seen = Seen(Outcome.LOOP, f"{times} times")
        yield cell(_TECHNIQUE, "refused", family, Outcome.REFUSED, seen, "")
    router.run(["nft", "delete", "table", "inet", "taken"])
    gateway.stop()
