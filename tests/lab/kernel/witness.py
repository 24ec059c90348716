"""What becomes of packets on a router: sent in from its LANs, and looked for where they come out.

The witness is an nftables table of its own, whatever backend carries the plan. It ends each
packet where it has seen it, so that no flow is ever established, and packets with the same
addresses and ports can be sent again.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from gateway.flow import FlowFacts
from gateway.kernel import libnftables
from gateway.kernel.sockets import open_listener
from gateway.lab.process import wait_until
from gateway.marks import DEFAULT_TCP_PORT, Marks

from .namespace import Namespace
from .packets import frame

#: Frames sent before the router has to have caught up.
_BURST = 300
_MARKS = Marks()
FAR_MAC = bytes.fromhex("020000000001")

#: Behind the diversion's chains, before those that answer what is refused.
_TABLE = f"""
table inet witness {{
    counter arrived {{
    }}
    set forwarded {{
        typeof @th,64,32 . meta mark
        size 65535
        flags dynamic
    }}
    set delivered {{
        typeof @th,64,32 . meta mark
        size 65535
        flags dynamic
    }}
    chain early {{
        type filter hook prerouting priority -400
        ether saddr {FAR_MAC.hex(":")} counter name arrived
    }}
    chain forward {{
        type filter hook forward priority -10
        add @forwarded {{ @th,64,32 . meta mark & {_MARKS.mask:#x} }} drop
    }}
    chain input {{
        type filter hook input priority -10
        iifname "lan*" add @delivered {{ @th,64,32 . meta mark & {_MARKS.mask:#x} }} drop
    }}
}}
"""
_FORWARDED = {0: "direct", _MARKS.refuse.value: "refuse", _MARKS.refuse_icmp.value: "refuse_icmp"}
_DELIVERED = {_MARKS.divert.value: "divert"}


class Router:
    """A namespace with two LAN interfaces, whose other ends send frames into it."""

    def __init__(self) -> None:
        self.ns = Namespace()
        self.ns.sh(
            """
            ip link add lan1 type veth peer name lan1-far
            for link in lan1 lan1-far; do ip link set $link addrgenmode none up; done
            # REDIRECT takes its new destination from the interface.
            ip address add 192.168.21.1/24 dev lan1
            ip address add fd00:21::1/64 dev lan1 nodad
            for link in all lan0 lan1; do sysctl -qw net.ipv4.conf.$link.rp_filter=0; done
            """
        )
        self.ns.call(libnftables.run, _TABLE)
        self._lans = {name: self.ns.call(_open, name) for name in ("lan0", "lan1")}
        # Without a listener that takes it, what is to be diverted is dropped.
        self._listeners = [
            self.ns.call(open_listener, host, DEFAULT_TCP_PORT, transparent=True)
            for host in ("127.0.0.1", "::1")
        ]
        self._arrived = 0

    def close(self) -> None:
        for sender, _ in self._lans.values():
            sender.close()
        for listener in self._listeners:
            listener.close()
        self.ns.close()

    def fates(self, flows: Sequence[FlowFacts]) -> list[str]:
        """What becomes of the first packet of each flow.

        ``direct``: forwarded without a mark of ours. ``refuse``, ``refuse_icmp``: on its way to
        the rules that answer so. ``divert``: given to a local listener. ``drop``: gone.
        """
        for name in ("forwarded", "delivered"):
            self._nft(f"flush set inet witness {name}")
        for start in range(0, len(flows), _BURST):
            for number in range(start, min(start + _BURST, len(flows))):
                sender, mac = self._lans[flows[number].interface]
                sender.send(frame(flows[number], number, mac, FAR_MAC))
                self._arrived += 1
            wait_until(lambda: self._count() >= self._arrived, "the packets to arrive")
        fates = {number: _FORWARDED[mark] for number, mark in self._seen("forwarded")}
        fates |= {number: _DELIVERED[mark] for number, mark in self._seen("delivered")}
        return [fates.get(number, "drop") for number in range(len(flows))]

    def _count(self) -> int:
        listed = self._query("list counter inet witness arrived")
        return int(listed[0]["counter"]["packets"])

    def _seen(self, name: str) -> list[tuple[int, int]]:
        found = self._query(f"list set inet witness {name}")[0]["set"]
        return [tuple(element["concat"]) for element in found.get("elem", ())]

    def _nft(self, command: str) -> None:
        self.ns.call(libnftables.run, command)

    def _query(self, command: str) -> list[dict[str, Any]]:
        return self.ns.call(libnftables.query, command)


def _open(name: str) -> tuple[socket.socket, bytes]:
    """The far end of a LAN interface, and the address of the near one."""
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sender.bind((f"{name}-far", 0))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as near:
        near.bind((name, 0))
        mac: bytes = near.getsockname()[4]
    return sender, mac
