"""What becomes of packets on a router: sent from its LANs or by itself, seen where they come out.

The witness is an nftables table of its own, whatever backend carries the plan. It ends each
packet where it has seen it, so that no flow is ever established, and packets with the same
addresses and ports can be sent again.
"""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from policies import GID, UIDS

from gateway.flow import FlowFacts
from gateway.kernel import libnftables
from gateway.kernel.sockets import family_of, open_listener
from gateway.lab.process import happens, wait_until
from gateway.marks import DEFAULT_TCP_PORT, Marks

from .namespace import Namespace
from .packets import frame, packet

#: Frames sent before the router has to have caught up.
_BURST = 300
#: How often they are sent, and how long they may take (seconds).
_TRIES, _TRY_S = 10, 2.0
_MARKS = Marks()
#: Outside our bits: what tells packets of the test from others that this machine sends.
_TEST_MARK = 0x40

#: Behind the diversion's chains, before those that answer what is refused.
_TABLE = f"""
table inet witness {{
    set arrived {{
        typeof @th,64,32
        size 65535
        flags dynamic
    }}
    set forwarded {{
        typeof @th,64,32 . meta mark
        size 65535
        flags dynamic
    }}
    set sent {{
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
        ether saddr & ff:ff:ff:ff:ff:00 == 02:00:00:00:00:00 add @arrived {{ @th,64,32 }}
    }}
    chain own_early {{
        type filter hook output priority -400
        meta mark & {_TEST_MARK:#x} != 0 add @arrived {{ @th,64,32 }}
    }}
    chain output {{
        type filter hook output priority -10
        meta mark & {_TEST_MARK:#x} == 0 accept
        add @sent {{ @th,64,32 . meta mark & {_MARKS.mask:#x} }} drop
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
_FATES = {
    0: "direct",
    _MARKS.refuse.value: "refuse",
    _MARKS.refuse_icmp.value: "refuse_icmp",
    _MARKS.divert.value: "divert",
    _MARKS.divert_own.value: "divert",
}
#: Numbers from here on are of packets that interfaces send when they come up (IGMP, MLD).
_OTHERS = 1 << 16
_QUEUES = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
#: Which of them there can be where packets are looked for.
_PLACES = {
    "forwarded": {"direct", "refuse", "refuse_icmp"},
    "delivered": {"divert"},
    "sent": {"direct", "refuse", "refuse_icmp", "divert"},
}


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
        self._own = {
            (family, uid): self.ns.call(_open_raw, family, uid)
            for family in (socket.AF_INET, socket.AF_INET6)
            for uid in UIDS
        }
        self._lans = {name: self.ns.call(_open, name) for name in ("lan0", "lan1")}
        # Without a listener that takes it, what is to be diverted is dropped.
        self._listeners = [
            self.ns.call(open_listener, host, DEFAULT_TCP_PORT, transparent=True)
            for host in ("127.0.0.1", "::1")
        ]
        self._has_queues = self.ns.call(_QUEUES.exists)

    def close(self) -> None:
        for sender, _ in self._lans.values():
            sender.close()
        for opened in (*self._listeners, *self._own.values()):
            opened.close()
        self.ns.close()

    def fates(
        self, flows: Sequence[FlowFacts], answered: Callable[[], object] = lambda: None
    ) -> list[str]:
        """What becomes of the first packet of each flow.

        ``direct``: forwarded or sent without a mark of ours. ``refuse``, ``refuse_icmp``: on its
        way to the rules that answer so. ``divert``: given to a local listener, or, of this
        machine, on its way there. ``drop``: gone. ``answered`` returns when whoever answers packet
        queues is done with what has been taken out of them.
        """
        for place in _PLACES:
            self._nft(f"flush set inet witness {place}")
        for start in range(0, len(flows), _BURST):
            self._deliver(dict(enumerate(flows[start : start + _BURST], start)))
            wait_until(lambda: not self._queued(), "the packets to be answered")
            answered()
        places = self._places()
        while (later := self._places()) != places:
            places = later  # the last one may still be on its way
        fates = dict.fromkeys(range(len(flows)), "drop")
        for place, possible in _PLACES.items():
            for number, mark in places[place]:
                assert fates[number] == "drop", "a packet was seen twice"
                assert _FATES[mark] in possible, f"{flows[number]} is {place} with {mark:#x}"
                fates[number] = _FATES[mark]
        return list(fates.values())

    def _deliver(self, flows: Mapping[int, FlowFacts]) -> None:
        """Send their packets, again where they are lost: the kernel's backlog is bounded."""
        self._nft("flush set inet witness arrived")
        missing = flows
        for _ in range(_TRIES):
            for number, flow in missing.items():
                self.send(flow, number)
            if happens(lambda: self.arrived() >= flows.keys(), _TRY_S):
                return
            arrived = self.arrived()
            missing = {number: flow for number, flow in flows.items() if number not in arrived}
        raise AssertionError(f"{len(missing)} packets do not arrive")

    def arrived(self) -> set[int]:
        """The numbers of the packets that came out of the cable, whatever has become of them."""
        found = self._query("list set inet witness arrived")[0]["set"]
        return {number for number in found.get("elem", ()) if number < _OTHERS}

    def forwarded(self) -> set[int]:
        """The numbers of the packets that went through without a mark of ours."""
        return {number for number, mark in self._seen("forwarded") if not mark}

    def send(self, flow: FlowFacts, number: int) -> None:
        """The first packet of a flow, with a number to know it by."""
        if flow.interface:
            sender, mac = self._lans[flow.interface]
            sender.send(frame(flow, number, mac))
        elif flow.owner is not None and flow.owner.uid is not None:
            sender = self._own[family_of(flow.destination.host), flow.owner.uid]
            with suppress(PermissionError):  # what is dropped on its way out
                sender.sendto(packet(flow, number), (flow.destination.host, 0))

    def _queued(self) -> int:
        """Packets that wait in packet queues (``queue_total`` of the third column)."""
        listed = self.ns.call(_QUEUES.read_text).splitlines() if self._has_queues else []
        return sum(int(line.split()[2]) for line in listed)

    def _places(self) -> dict[str, set[tuple[int, int]]]:
        return {place: set(self._seen(place)) for place in _PLACES}

    def _seen(self, name: str) -> list[tuple[int, int]]:
        found = self._query(f"list set inet witness {name}")[0]["set"]
        seen = [tuple(element["concat"]) for element in found.get("elem", ())]
        return [(number, mark) for number, mark in seen if number < _OTHERS]

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


def _open_raw(family: int, uid: int) -> socket.socket:
    """For whole packets, as a program of that user would send them."""
    # As thread, not as process: setfsuid(2) changes what new files, and sockets, belong to.
    libc = ctypes.CDLL(None)
    libc.setfsgid(GID)
    libc.setfsuid(uid)
    try:
        opened = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    finally:
        libc.setfsuid(0)
        libc.setfsgid(0)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _TEST_MARK)
    return opened
