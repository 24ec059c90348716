"""Packets that the kernel holds until we say what they are: NFQUEUE (package netfilterqueue).

An answer is a mark: the packet gets it and meets our chains once more, which do what the
mark says. Without a mark it is dropped. Whoever sends more than we can answer has the rest
dropped by the kernel: the queue is bounded, and a first packet is sent again.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, Protocol

from gateway.errors import CapabilityError
from gateway.kernel.netlink import NETLINK_NETFILTER, SOL_NETLINK
from gateway.kernel.reactor import Reactor
from gateway.marks import Mark

#: Packets that wait in the kernel, at most.
LENGTH: Final = 4096
#: Bytes of each that we are given: what a QUIC client's first datagram needs.
COPIED: Final = 1600
#: Packets for one call of the reactor; others get their turn in between.
_BUDGET: Final = 64
_NETLINK_NO_ENOBUFS: Final = 5
_RECEIVE_BYTES: Final = 4 << 20


class Judge(Protocol):
    """Who answers."""

    def judge(self, data: bytes, interface_index: int, mac: str) -> Mark | None:
        """The mark that a packet goes on with; None drops it.

        ``data`` are its first bytes, and it came in on that interface from that Ethernet
        address, which is empty where there is none.
        """


class PacketQueue:
    """One queue, watched by a reactor. Packets of both families come through it."""

    def __init__(self, reactor: Reactor, number: int, judge: Judge) -> None:
        """Raises ``CapabilityError`` where the queue cannot be had."""
        try:
            import netfilterqueue
        except ImportError as error:
            raise CapabilityError(
                f"netfilterqueue cannot be loaded: {error}",
                "apt-get install gcc python3-dev libnetfilter-queue-dev && pip install"
                " 'gateway[nfqueue]', or set inbound.classify: listener",
            ) from error
        self._reactor = reactor
        self._judge = judge
        try:
            self._queue = netfilterqueue.NetfilterQueue()
            self._queue.bind(
                number,
                self._answer,
                max_len=LENGTH,
                range=COPIED,
                sock_len=_RECEIVE_BYTES,
            )
        except OSError as error:
            raise CapabilityError(
                f"packet queue {number} cannot be had: {error}",
                "run as root, load nfnetlink_queue, and see in"
                " /proc/net/netfilter/nfnetlink_queue whether another program has the queue"
                " (inbound.queue sets its number)",
            ) from error
        # A descriptor of its own: the queue closes the other one.
        self._socket = _Copy(self._queue.get_fd())
        self._turn = _Turn()
        self._left = 0
        reactor.watch(self._socket.fileno(), self)

    def on_ready(self, fd: int, events: int) -> None:
        """Answer what waits, so many packets at a time."""
        del events
        self._left = _BUDGET
        self._turn.recv = self._socket.recv
        self._queue.run_socket(self._turn)
        if not self._left:
            self._reactor.again(fd)

    def abort(self) -> None:
        """Go on: the packet that failed is dropped with the queue at the latest."""

    def close(self) -> None:
        """Give the queue up; what waits in it is dropped."""
        self._reactor.close(self._socket)
        self._queue.unbind()

    def _answer(self, packet: Any) -> None:
        self._left -= 1
        if not self._left:
            self._turn.recv = _enough
        hardware = packet.get_hw()
        mac = _mac(hardware) if hardware else ""
        mark = self._judge.judge(packet.get_payload(), packet.indev, mac)
        if mark is None:
            packet.drop()
            return
        packet.set_mark(packet.mark & mark.keep | mark.value)
        # Not accept: that would let it past the rest of the table, to where it wants to go.
        packet.repeat()


class _Copy(socket.socket):
    """The queue's netlink socket, by a descriptor of its own: the queue closes the other one."""

    def __init__(self, descriptor: int) -> None:
        duplicate = socket.dup(descriptor)
        super().__init__(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER, duplicate)
        self.setblocking(False)
        # Overruns lose packets, which their senders send again; there is nobody else to tell.
        self.setsockopt(SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)


class _Turn:
    """What the package takes for a socket: it calls ``recv`` until that has nothing more.

    The socket's own method as it is, for a Python function would take longer than its call.
    """

    __slots__ = ("recv",)

    recv: Callable[[int], bytes]


def _enough(size: int) -> bytes:
    raise BlockingIOError(errno.EAGAIN, f"no {size} bytes more for now")


@lru_cache(maxsize=1024)
def _mac(hardware: bytes) -> str:
    return hardware[:6].hex(":")
