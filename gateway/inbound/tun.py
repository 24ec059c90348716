"""Reads the TUN: each packet goes to who knows its protocol, or is dropped and counted.

A handler takes one protocol, by IANA's number (``gateway.wire.ip.TCP``, ``UDP``, ``ICMP``,
``ICMPV6``). It is given whole packets alone, which are neither malformed nor martian, and
answers by ``write``: never what it has read, but packets of its own, or rewritten ones, whose
source is not an address of this machine (the kernel takes those for martians). What is written
arrives as if received on the device, and is routed; nothing is ever forwarded by echoing it.

Flows that need no more than other addresses, ports and checksums are rewritten in place by a
``Rewriter``, before anything is parsed: at super-packets' rates that is all the time there is.
"""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from gateway.kernel.reactor import Reactor
from gateway.kernel.tun import FRAME_BYTES, USO4, TunDevice
from gateway.kernel.tun_entrance import TunEntrance
from gateway.wire.fragments import Reassembler
from gateway.wire.ip import (
    ICMP,
    ICMPV6,
    NO_OFFLOAD,
    PLAIN_V4,
    TCP,
    VNET_BYTES,
    Buffer,
    IpPacket,
    Malformed,
    Vnet,
    read_ip,
    read_vnet,
)
from gateway.wire.martian import martian

#: Packets for one call of the reactor; others get their turn in between.
BUDGET: Final = 64
_V4_PROTOCOL: Final = VNET_BYTES + 9
_V6_NEXT_HEADER: Final = VNET_BYTES + 6
_ECHOED: Final = (ICMP, ICMPV6)
#: At the end, so many times as many at most.
LAST_ROUNDS: Final = 1024


class PacketHandler(Protocol):
    """Who takes the packets of a protocol; those that came in fragments, put together."""

    def take(self, ip: IpPacket, vnet: Vnet, packet: memoryview) -> str | None:
        """Serve a packet, from its IP header on; it is another one's once this returns.

        Returns why it was dropped, in the words of a counter (``tun_dropped_WORDS``), or None.
        """

    def expire(self, now: float) -> None:
        """Forget what has been quiet for too long; called every few seconds."""

    def close(self) -> None:
        """Forget everything: the device is let go."""


class Rewriter(Protocol):
    """Who rewrites packets of flows it knows."""

    def rewrite(self, frame: bytearray, size: int) -> bool:
        """Rewrite the first ``size`` bytes in place, to be written back; False: not known."""


#: Who takes packets that are like earlier ones, in the first so many bytes of a frame, with the
#: vnet header; False: not one of those.
Repeater = Callable[[bytearray, int], bool]


class TunWriter:
    """Writes packets into a device."""

    def __init__(self, device: TunDevice, counters: Counter[str]) -> None:
        self.device = device
        self._counters = counters

    def write(self, packet: Buffer, vnet: Buffer = NO_OFFLOAD) -> bool:
        """Have the kernel receive a packet; False: it did not take it, which is counted.

        ``vnet``: what is left to the kernel, as ``Vnet.pack`` gives it.
        """
        try:
            os.writev(self.device.fileno(), (vnet, packet))
        except OSError as error:
            self.refused(error)
            return False
        return True

    @property
    def segments(self) -> bool:
        """Whether the kernel cuts super-packets of UDP (Linux 6.2)."""
        return bool(self.device.offloads & USO4)

    def gather(self, parts: Sequence[Buffer]) -> bool:
        """The same of a frame in parts, the first of which is the vnet header."""
        try:
            os.writev(self.device.fileno(), parts)
        except OSError as error:
            self.refused(error)
            return False
        return True

    def refused(self, error: OSError) -> None:
        """Count what the kernel did not take."""
        words = errno.errorcode.get(error.errno or 0, "unknown").lower()
        self._counters[f"tun_dropped_write_{words}"] += 1


def _nothing() -> None:
    """Nobody waits for it."""


def _none_alike(frame: bytearray, size: int) -> bool:
    """Nobody knows packets by what others were like."""
    del frame, size
    return False


class TunReader:
    """One queue of a device, the writer's, in the reactor."""

    def __init__(
        self,
        reactor: Reactor,
        writer: TunWriter,
        handlers: Mapping[int, PacketHandler],
        rewriter: Rewriter,
        counters: Counter[str],
        others: PacketHandler | None = None,
        served: Callable[[], None] = _nothing,
        repeat: Repeater = _none_alike,
        entrance: TunEntrance | None = None,
    ) -> None:
        """``others`` takes the protocols that have no handler.

        ``served`` is called when all that has come, or enough of it, has been handed over.

        ``counters``: whose keys begin with ``tun_``; the writer's, too. ``entrance``: where TCP
        that came in fragments goes, which may be another queue's; None: there is no other.
        """
        self._reactor = reactor
        self._writer = writer
        self._handlers = handlers
        self._counters = counters
        self._others = others
        self._served = served
        self._entrance = entrance
        self._fragments = Reassembler()
        self._frame = bytearray(FRAME_BYTES)
        self._buffers = (self._frame,)
        self._view = memoryview(self._frame)
        self._tools = (
            self._frame,
            self._buffers,
            self._view,
            rewriter.rewrite,
            repeat,
            os.readv,
            os.write,
        )
        reactor.watch(writer.device.fileno(), self)

    def replace(self, device: TunDevice) -> None:
        """Go on with the device that was made in the place of one that was removed."""
        self._reactor.close(self._writer.device)
        self._writer.device = device
        self._reactor.watch(device.fileno(), self)

    def on_ready(self, fd: int, events: int) -> None:
        """Take what waits, up to a budget."""
        del events
        if not self._drain(fd):
            self._reactor.again(fd)

    def _drain(self, fd: int) -> bool:
        """False: more may wait."""
        frame, buffers, view, rewrite, repeat, read, write = self._tools
        drained = False
        for _ in range(BUDGET):
            try:
                size = read(fd, buffers)
            except BlockingIOError:
                drained = True
                break
            except OSError as error:
                # EIO: it was taken down, the next event tells that it is up again. EBADFD:
                # somebody has removed it, ``replace`` is what comes next.
                words = errno.errorcode.get(error.errno or 0, "unknown").lower()
                self._counters[f"tun_read_{words}"] += 1
                drained = True
                break
            # Whose it may be: with options, or a header between, it is for him who parses it.
            plain = frame[VNET_BYTES] == PLAIN_V4
            protocol = frame[_V4_PROTOCOL if plain else _V6_NEXT_HEADER]
            if protocol == TCP and rewrite(frame, size):
                try:
                    write(fd, view[:size])
                except OSError as error:
                    self._writer.refused(error)
            elif protocol in _ECHOED and repeat(frame, size):
                # It may be answered already: what else there is, and what waits to be served
                # by now, comes after that.
                return False
            else:
                self._take(size)
        self._served()
        return drained

    def abort(self) -> None:
        """Go on: what failed was one packet's fault, and the device must outlive it."""
        self._reactor.again(self._writer.device.fileno())

    def expire(self, now: float) -> None:
        """Have the handlers forget; ``now``: ``time.monotonic``."""
        self._fragments.expire(now)
        self._counters["tun_dropped_fragment"] = self._fragments.given_up
        for handler in set(self._handlers.values()):
            handler.expire(now)

    def close(self) -> None:
        """Leave the device, once those who wait in it have heard of the end of their flows."""
        for _ in range(LAST_ROUNDS):
            if self._drain(self._writer.device.fileno()):
                break
        for handler in set(self._handlers.values()):
            handler.close()
        self._reactor.close(self._writer.device)
        if self._entrance is not None:
            self._entrance.close()

    def _take(self, size: int) -> None:
        dropped = self._handle(size)
        if dropped is not None:
            self._counters[f"tun_dropped_{dropped}"] += 1

    def _handle(self, size: int) -> str | None:
        if size < VNET_BYTES:
            return Malformed.SHORT
        packet = self._view[VNET_BYTES:size]
        ip = read_ip(packet)
        if isinstance(ip, Malformed):
            return ip
        reason = martian(ip.source, ip.destination)
        if reason is not None:
            return reason
        vnet = read_vnet(self._frame)
        if ip.fragment is not None:
            whole = self._fragments.feed(ip, packet, time.monotonic())
            if whole is None:
                return None
            packet, vnet = memoryview(whole), Vnet()
            ip = read_ip(packet)
            if isinstance(ip, Malformed):
                return ip
            if ip.protocol == TCP and self._entrance is not None:
                self._send_anew(self._entrance, whole)
                return None
        handler = self._handlers.get(ip.protocol, self._others)
        if handler is None:
            return "protocol"
        return handler.take(ip, vnet, packet)

    def _send_anew(self, entrance: TunEntrance, packet: bytes) -> None:
        try:
            entrance.send(packet)
        except OSError as error:
            self._writer.refused(error)
        else:
            self._counters["tun_steered_anew"] += 1
