"""Datagrams, many in one system call: recvmmsg(2), sendmmsg(2), UDP_GRO and UDP_SEGMENT (udp(7)).

A ``Batch`` is filled by one call and emptied by few: what it holds is sent on from where the
kernel put it, with room in front of each datagram for a header. The constants of
<linux/udp.h> live here too.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from socket import SocketType
from typing import Final, NamedTuple

from gateway.kernel.mmsg import (
    CONTROL_AT,
    CONTROL_STEP,
    HEADER_BYTES,
    IOVEC,
    LENGTH_AT,
    LENGTH_STEP,
    Iovec,
    Mmsghdr,
    recvmmsg,
    sendmmsg,
)
from gateway.kernel.sockaddr import CMSG, ORDER, Address

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104

#: Datagrams (or trains of equal ones that the kernel joined) taken by one call.
SLOTS: Final = 64
#: In front of each, for the header that it gets on its way: a SOCKS one with a long name.
ROOM: Final = 320
#: The largest datagram, and the largest train (RFC 768: a 16-bit length).
LARGEST: Final = 65_535
#: An odd multiple of a cache line, so that the starts of datagrams do not share cache sets.
_STRIDE: Final = ROOM + 65_536

#: Where the kernel writes the source and the ancillary data of each.
_NAME_BYTES: Final = 32
_CONTROL_BYTES: Final = 160
_META: Final = _NAME_BYTES + _CONTROL_BYTES
_SEGMENT_SIZE: Final = struct.Struct("i")
_TRAIN_BYTES: Final = socket.CMSG_SPACE(_SEGMENT_SIZE.size)
_BLANK: Final = bytes(SLOTS * _META)

#: UDP_MAX_SEGMENTS of <linux/udp.h> before 6.9, and what one send may hold (RFC 768, IPv4).
_MAX_SEGMENTS: Final = 64
_MAX_SEND: Final = 65_000

_AGAIN: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})
#: An earlier datagram's ICMP error, told now; this one was not sent (udp(7), "Error handling").
_OF_EARLIER: Final = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH})


class Way(NamedTuple):
    """How a socket addresses one far end: by a header in front, or by a socket address."""

    prefix: bytes
    to: Address | None


class Batch:
    """What one recvmmsg took, until the next. One serves many sockets, one after another.

    ``control``: how many bytes of ancillary data comes with each datagram, UDP_GRO's left out.
    Memory is only used as far as it is written: some pages, where datagrams are small.
    """

    __slots__ = (
        "_control", "_controls", "_headers", "_headers_at", "_hop_limit", "_iovecs", "_lengths",
        "_meta", "_out", "_out_at", "_out_headers", "_template", "_used", "_view", "dropped",
        "failure",
    )  # fmt: skip

    def __init__(self, control: int = 0) -> None:
        view = memoryview(mmap.mmap(-1, SLOTS * _STRIDE))
        meta = mmap.mmap(-1, SLOTS * _META)  # slices of it are bytes at once
        table = bytearray(SLOTS * HEADER_BYTES)
        headers = (Mmsghdr * SLOTS).from_buffer(table)
        iovecs = (Iovec * SLOTS)()
        base, meta_at = _address_of(view), _address_of(meta)
        for slot in range(SLOTS):
            iovecs[slot] = Iovec(base + slot * _STRIDE + ROOM, LARGEST)
            header = headers[slot].header
            header.name, header.namelen = meta_at + slot * _META, _NAME_BYTES
            header.iov = ctypes.addressof(iovecs) + slot * ctypes.sizeof(Iovec)
            header.iovlen = 1
            header.control = meta_at + slot * _META + _NAME_BYTES
            header.controllen = _CONTROL_BYTES
        self._view = view
        self._meta = meta
        self._control = control
        self._iovecs = iovecs
        self._headers = memoryview(table)
        self._headers_at = ctypes.addressof(headers)
        self._template = bytes(table)
        self._lengths = self._headers.cast("I")
        self._controls = self._headers.cast("P")
        out = bytearray(SLOTS * IOVEC.size)
        out_iovecs = (Iovec * SLOTS).from_buffer(out)
        self._out_headers = (Mmsghdr * SLOTS)()
        for slot in range(SLOTS):
            header = self._out_headers[slot].header
            header.iov = ctypes.addressof(out_iovecs) + slot * ctypes.sizeof(Iovec)
            header.iovlen = 1
        self._out = out
        self._out_at = base
        self._used = 0
        self._hop_limit = 0
        #: Datagrams that could not be sent, and the errno of the last of them.
        self.dropped = 0
        self.failure = 0

    # --- receiving -----------------------------------------------------------------------

    def receive(self, fd: int) -> int:
        """Take what waits, at most ``SLOTS``; fewer: nothing waits any more.

        Raises ``OSError`` as recvmmsg(2) does, but for an empty queue.
        """
        used = self._used
        if used:
            # The kernel has written lengths over the capacities; and what it leaves out between
            # control messages must not make two of one flow differ.
            size = used * HEADER_BYTES
            self._headers[:size] = self._template[:size]
            self._meta[: used * _META] = _BLANK[: used * _META]
            self._used = 0
        count: int = recvmmsg(fd, self._headers_at, SLOTS, socket.MSG_DONTWAIT, None)
        if count < 0:
            code = ctypes.get_errno()
            if code in (errno.EAGAIN, errno.EINTR):
                return 0
            raise OSError(code, os.strerror(code))
        self._used = count
        return count

    def put(
        self, slot: int, data: bytes | memoryview, segment: int = 0, hop_limit: int = 0
    ) -> None:
        """Hold, in a slot, what was not received by a socket.

        ``segment``: the size of each datagram of a train, as UDP_GRO tells it. ``hop_limit``: with
        which one alone is sent on by its address; 0 for the system's.
        """
        size = len(data)
        at = slot * _STRIDE + ROOM
        self._view[at : at + size] = data
        self._lengths[slot * LENGTH_STEP + LENGTH_AT] = size
        self._used = max(self._used, slot + 1)
        self._hop_limit = hop_limit
        train = 0 < segment < size
        self._controls[slot * CONTROL_STEP + CONTROL_AT] = self._control + (
            _TRAIN_BYTES if train else 0
        )
        if train:
            at = slot * _META + _NAME_BYTES
            CMSG.pack_into(self._meta, at, CMSG.size + 4, SOL_UDP, UDP_GRO)
            _SEGMENT_SIZE.pack_into(self._meta, at + CMSG.size, segment)

    def length(self, slot: int) -> int:
        """Bytes of the datagram, or of the whole train."""
        return self._lengths[slot * LENGTH_STEP + LENGTH_AT]

    def name(self, slot: int, size: int) -> bytes:
        """The source as the kernel wrote it: 16 bytes for IPv4, 28 for IPv6."""
        at = slot * _META
        return self._meta[at : at + size]

    def ends(self, slot: int) -> bytes:
        """Source and ancillary data as one value, the same for all datagrams of a flow.

        ``split_ends`` reads it.
        """
        at = slot * _META
        start = at + _NAME_BYTES
        size = self._controls[slot * CONTROL_STEP + CONTROL_AT]
        if size == self._control:
            return self._meta[at : start + size]
        # The kernel puts UDP_GRO before what belongs to the IP layer (udp_recvmsg()).
        gap = size - self._control
        return self._meta[at:start] + self._meta[start + gap : start + size]

    def segment(self, slot: int) -> int:
        """Size of each datagram of a train, but the last; 0 where it is a single one."""
        if self._controls[slot * CONTROL_STEP + CONTROL_AT] == self._control:
            return 0
        at = slot * _META + _NAME_BYTES
        _, level, kind = CMSG.unpack_from(self._meta, at)
        if (level, kind) != (SOL_UDP, UDP_GRO):
            return 0
        step: int = _SEGMENT_SIZE.unpack_from(self._meta, at + CMSG.size)[0]
        return step if step < self.length(slot) else 0

    def data(self, slot: int) -> memoryview:
        """The bytes; valid until the next ``receive``."""
        at = slot * _STRIDE + ROOM
        return self._view[at : at + self._lengths[slot * LENGTH_STEP + LENGTH_AT]]

    def datagrams(self, slot: int) -> Iterator[memoryview]:
        """The datagrams of a slot, one by one."""
        data = self.data(slot)
        step = self.segment(slot) or len(data) or 1
        for at in range(0, len(data) or 1, step):
            yield data[at : at + step]

    def alike(self, slot: int, start: bytes) -> bool:
        """Whether every datagram of the slot begins with ``start``."""
        if not self.segment(slot):
            at = slot * _STRIDE + ROOM
            size = len(start)
            whole = self._lengths[slot * LENGTH_STEP + LENGTH_AT] >= size
            return whole and self._view[at : at + size] == start
        return all(data[: len(start)] == start for data in self.datagrams(slot))

    # --- sending on ----------------------------------------------------------------------

    def forward(
        self,
        sock: SocketType,
        first: int,
        last: int,
        *,
        prefix: bytes = b"",
        skip: int = 0,
        to: Address | None = None,
    ) -> int:
        """Send slots ``first`` up to ``last`` on; the bytes sent, prefixes and skips left out.

        Each datagram loses its first ``skip`` bytes and gets ``prefix`` (at most ``ROOM``
        bytes) in front. What cannot be sent is dropped and counted: UDP promises nothing.
        """
        if last - first == 1 and not self.segment(first):
            return self._forward_one(sock, first, prefix, skip, to)
        sent, run = 0, first
        for slot in range(first, last):
            if self.segment(slot):
                sent += self._forward_run(sock, run, slot, prefix, skip, to)
                sent += self._forward_train(sock, slot, prefix, skip, to)
                run = slot + 1
        return sent + self._forward_run(sock, run, last, prefix, skip, to)

    def _forward_one(
        self, sock: SocketType, slot: int, prefix: bytes, skip: int, to: Address | None
    ) -> int:
        start = slot * _STRIDE + ROOM
        end = start + self._lengths[slot * LENGTH_STEP + LENGTH_AT]
        start += skip
        head = start - len(prefix)
        view = self._view
        if prefix:
            view[head:start] = prefix
        elif self._hop_limit and to is not None:
            return end - start if self._send_so_far(sock, view[head:end], to) else 0
        return end - start if self.send(sock, view[head:end], to) else 0

    def send(self, sock: SocketType, data: bytes | memoryview, to: Address | None) -> bool:
        """Send one datagram; False: it is dropped, and counted."""
        try:
            try:
                _send(sock, data, to)
            except OSError as error:
                if error.errno not in _OF_EARLIER:
                    raise
                _send(sock, data, to)
        except OSError as error:
            self._lose(1, error.errno or 0)
            return False
        return True

    def _send_so_far(self, sock: SocketType, data: memoryview, to: Address) -> bool:
        """One datagram that goes no further than ``put`` has said (ip(7), RFC 3542)."""
        if sock.family == socket.AF_INET6:
            kind = (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT)
        else:
            kind = (socket.IPPROTO_IP, socket.IP_TTL)
        try:
            sock.sendmsg([data], [(*kind, struct.pack("i", self._hop_limit))], 0, to.text)
        except OSError as error:
            self._lose(1, error.errno or 0)
            return False
        return True

    def _forward_run(
        self,
        sock: SocketType,
        first: int,
        last: int,
        prefix: bytes,
        skip: int,
        to: Address | None,
    ) -> int:
        """Single datagrams, by sendmmsg."""
        count = last - first
        if count <= 1:
            return self._forward_one(sock, first, prefix, skip, to) if count else 0
        view, out, base = self._view, self._out, self._out_at
        before = len(prefix)
        total = 0
        sizes = []
        for index, slot in enumerate(range(first, last)):
            start = slot * _STRIDE + ROOM + skip
            size = self._lengths[slot * LENGTH_STEP + LENGTH_AT] - skip
            if before:
                view[start - before : start] = prefix
            IOVEC.pack_into(out, index * IOVEC.size, base + start - before, size + before)
            header = self._out_headers[index].header
            header.name, header.namelen = (to.pointer, to.size) if to else (None, 0)
            sizes.append(size)
            total += size
        done = 0
        while done < count:
            at = ctypes.addressof(self._out_headers) + done * HEADER_BYTES
            sent: int = sendmmsg(sock.fileno(), at, count - done, socket.MSG_DONTWAIT)
            if sent > 0:
                done += sent
                continue
            code = ctypes.get_errno()
            if code in _OF_EARLIER:
                sent = sendmmsg(sock.fileno(), at, count - done, socket.MSG_DONTWAIT)
                if sent > 0:
                    done += sent
                    continue
                code = ctypes.get_errno()
            lost = count - done if code in _AGAIN else 1
            self._lose(lost, code)
            total -= sum(sizes[done : done + lost])
            done += lost
        return total

    def _forward_train(
        self, sock: SocketType, slot: int, prefix: bytes, skip: int, to: Address | None
    ) -> int:
        """A train as trains, each in one send (UDP_SEGMENT); one by one where it cannot be."""
        data, step = self.data(slot), self.segment(slot)
        size = step - skip + len(prefix)
        at_once = min(_MAX_SEGMENTS, max(1, _MAX_SEND // size)) * step
        control = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))]
        address = to.text if to else None
        total = 0
        for start in range(0, len(data), at_once):
            end = min(start + at_once, len(data))
            if not prefix and not skip:
                pieces: list[bytes | memoryview] = [data[start:end]]
            else:
                pieces = []
                for at in range(start, end, step):
                    pieces += (prefix, data[at + skip : min(at + step, end)])
            try:
                if address is None:
                    sock.sendmsg(pieces, control)
                else:
                    sock.sendmsg(pieces, control, 0, address)
            except OSError as error:
                if error.errno in _AGAIN:
                    self._lose(-(-(end - start) // step), error.errno or 0)
                    continue
                # A segment is more than the path takes at once (EINVAL, EMSGSIZE): alone, each
                # is fragmented. Or there is no such offload by this way (EIO, EOPNOTSUPP).
                for at in range(start, end, step):
                    piece = data[at + skip : min(at + step, end)]
                    if self.send(sock, prefix + bytes(piece), to):
                        total += len(piece)
                continue
            if not prefix and (end - start) % step == skip > 0:
                self.send(sock, b"", to)  # an empty one would not be a segment
            total += end - start - skip * -(-(end - start) // step)
        return total

    def _lose(self, count: int, code: int) -> None:
        self.dropped += count
        self.failure = code


def split_ends(ends: bytes) -> tuple[bytes, bytes]:
    """``Batch.ends`` as the source's socket address and the ancillary data."""
    size = 28 if int.from_bytes(ends[:2], ORDER) == socket.AF_INET6 else 16
    return ends[:size], ends[_NAME_BYTES:]


def _send(sock: SocketType, data: bytes | memoryview, to: Address | None) -> None:
    if to is None:
        sock.send(data)
    else:
        sock.sendto(data, to.text)


def _address_of(buffer: mmap.mmap | memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
