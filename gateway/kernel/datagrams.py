"""Datagrams, many in one system call: recvmmsg(2), sendmmsg(2), UDP_GRO and UDP_SEGMENT (udp(7)).

A ``Batch`` is filled by one call and emptied by few: what it holds is sent on from where the
kernel put it, with room in front of each datagram for a header. Python has neither call, so
the C library is asked directly. The constants of <linux/udp.h> live here too.
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
from typing import Any, Final, NamedTuple

from gateway.flow import Endpoint

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
_CMSG: Final = struct.Struct("Nii")
_SEGMENT_SIZE: Final = struct.Struct("i")
_BLANK: Final = bytes(SLOTS * _META)

#: UDP_MAX_SEGMENTS of <linux/udp.h> before 6.9, and what one send may hold (RFC 768, IPv4).
_MAX_SEGMENTS: Final = 64
_MAX_SEND: Final = 65_000

_AGAIN: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})
#: An earlier datagram's ICMP error, told now; this one was not sent (udp(7), "Error handling").
_OF_EARLIER: Final = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH})


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("length", ctypes.c_uint))


_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_recvmmsg = _LIBC.recvmmsg
_sendmmsg = _LIBC.sendmmsg
_recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)

_HEADER_BYTES: Final = ctypes.sizeof(_Mmsghdr)
_LENGTH_STEP: Final = _HEADER_BYTES // 4
_LENGTH_AT: Final = _Mmsghdr.length.offset // 4
_CONTROL_STEP: Final = _HEADER_BYTES // ctypes.sizeof(ctypes.c_size_t)
_CONTROL_AT: Final = _Msghdr.controllen.offset // ctypes.sizeof(ctypes.c_size_t)
_IOVEC: Final = struct.Struct("PN")


class Address:
    """A socket address in the two forms that sends need; ``raw`` is the kernel's own."""

    __slots__ = ("_buffer", "pointer", "raw", "size", "text")

    def __init__(self, raw: bytes) -> None:
        """``raw``: a ``sockaddr_in`` or ``sockaddr_in6``."""
        self.raw = raw
        self.text: tuple[str, int] | tuple[str, int, int, int] = (*endpoint_of(raw),)
        if len(raw) > 16 and any(raw[24:28]):
            # A link-local one: without its scope it is of no link.
            self.text = (*self.text, 0, struct.unpack_from("=I", raw, 24)[0])
        self._buffer = ctypes.create_string_buffer(raw, len(raw))
        self.pointer = ctypes.addressof(self._buffer)
        self.size = len(raw)


class Way(NamedTuple):
    """How a socket addresses one far end: by a header in front, or by a socket address."""

    prefix: bytes
    to: Address | None


def sockaddr(endpoint: Endpoint) -> bytes:
    """An endpoint with an address as the kernel writes it (ip(7), ipv6(7))."""
    host, port = endpoint
    if ":" in host:
        head = struct.pack("=H", socket.AF_INET6) + port.to_bytes(2, "big") + bytes(4)
        return head + socket.inet_pton(socket.AF_INET6, host) + bytes(4)
    head = struct.pack("=H", socket.AF_INET) + port.to_bytes(2, "big")
    return head + socket.inet_aton(host) + bytes(8)


def endpoint_of(raw: bytes) -> Endpoint:
    """The endpoint that a ``sockaddr_in`` or ``sockaddr_in6`` names, without its scope."""
    port = int.from_bytes(raw[2:4], "big")
    if int.from_bytes(raw[:2], _ORDER) == socket.AF_INET6:
        return Endpoint(socket.inet_ntop(socket.AF_INET6, raw[8:24]), port)
    return Endpoint(socket.inet_ntop(socket.AF_INET, raw[4:8]), port)


_ORDER: Final[Any] = "little" if struct.pack("=H", 1) == b"\1\0" else "big"


def control_messages(raw: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Level, type and data of each control message (cmsg(3)); stops at one that is cut off."""
    at, header = 0, _CMSG.size
    align = ctypes.sizeof(ctypes.c_size_t) - 1
    while at + header <= len(raw):
        length, level, kind = _CMSG.unpack_from(raw, at)
        if length < header or at + length > len(raw):
            return
        yield level, kind, raw[at + header : at + length]
        at += (length + align) & ~align


class Batch:
    """What one recvmmsg took, until the next. One serves many sockets, one after another.

    ``control``: how many bytes of ancillary data comes with each datagram, UDP_GRO's left out.
    Memory is only used as far as it is written: some pages, where datagrams are small.
    """

    __slots__ = (
        "_control", "_controls", "_headers", "_headers_at", "_iovecs", "_lengths", "_meta",
        "_out", "_out_at", "_out_headers", "_template", "_used", "_view", "dropped", "failure",
    )  # fmt: skip

    def __init__(self, control: int = 0) -> None:
        view = memoryview(mmap.mmap(-1, SLOTS * _STRIDE))
        meta = mmap.mmap(-1, SLOTS * _META)  # slices of it are bytes at once
        table = bytearray(SLOTS * _HEADER_BYTES)
        headers = (_Mmsghdr * SLOTS).from_buffer(table)
        iovecs = (_Iovec * SLOTS)()
        base, meta_at = _address_of(view), _address_of(meta)
        for slot in range(SLOTS):
            iovecs[slot] = _Iovec(base + slot * _STRIDE + ROOM, LARGEST)
            header = headers[slot].header
            header.name, header.namelen = meta_at + slot * _META, _NAME_BYTES
            header.iov = ctypes.addressof(iovecs) + slot * ctypes.sizeof(_Iovec)
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
        out = bytearray(SLOTS * _IOVEC.size)
        out_iovecs = (_Iovec * SLOTS).from_buffer(out)
        self._out_headers = (_Mmsghdr * SLOTS)()
        for slot in range(SLOTS):
            header = self._out_headers[slot].header
            header.iov = ctypes.addressof(out_iovecs) + slot * ctypes.sizeof(_Iovec)
            header.iovlen = 1
        self._out = out
        self._out_at = base
        self._used = 0
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
            size = used * _HEADER_BYTES
            self._headers[:size] = self._template[:size]
            self._meta[: used * _META] = _BLANK[: used * _META]
            self._used = 0
        count: int = _recvmmsg(fd, self._headers_at, SLOTS, socket.MSG_DONTWAIT, None)
        if count < 0:
            code = ctypes.get_errno()
            if code in (errno.EAGAIN, errno.EINTR):
                return 0
            raise OSError(code, os.strerror(code))
        self._used = count
        return count

    def length(self, slot: int) -> int:
        """Bytes of the datagram, or of the whole train."""
        return self._lengths[slot * _LENGTH_STEP + _LENGTH_AT]

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
        size = self._controls[slot * _CONTROL_STEP + _CONTROL_AT]
        if size == self._control:
            return self._meta[at : start + size]
        # The kernel puts UDP_GRO before what belongs to the IP layer (udp_recvmsg()).
        gap = size - self._control
        return self._meta[at:start] + self._meta[start + gap : start + size]

    def segment(self, slot: int) -> int:
        """Size of each datagram of a train, but the last; 0 where it is a single one."""
        if self._controls[slot * _CONTROL_STEP + _CONTROL_AT] == self._control:
            return 0
        at = slot * _META + _NAME_BYTES
        _, level, kind = _CMSG.unpack_from(self._meta, at)
        if (level, kind) != (SOL_UDP, UDP_GRO):
            return 0
        step: int = _SEGMENT_SIZE.unpack_from(self._meta, at + _CMSG.size)[0]
        return step if step < self.length(slot) else 0

    def data(self, slot: int) -> memoryview:
        """The bytes; valid until the next ``receive``."""
        at = slot * _STRIDE + ROOM
        return self._view[at : at + self._lengths[slot * _LENGTH_STEP + _LENGTH_AT]]

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
            whole = self._lengths[slot * _LENGTH_STEP + _LENGTH_AT] >= size
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
        end = start + self._lengths[slot * _LENGTH_STEP + _LENGTH_AT]
        start += skip
        head = start - len(prefix)
        view = self._view
        if prefix:
            view[head:start] = prefix
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
            size = self._lengths[slot * _LENGTH_STEP + _LENGTH_AT] - skip
            if before:
                view[start - before : start] = prefix
            _IOVEC.pack_into(out, index * _IOVEC.size, base + start - before, size + before)
            header = self._out_headers[index].header
            header.name, header.namelen = (to.pointer, to.size) if to else (None, 0)
            sizes.append(size)
            total += size
        done = 0
        while done < count:
            at = ctypes.addressof(self._out_headers) + done * _HEADER_BYTES
            sent: int = _sendmmsg(sock.fileno(), at, count - done, socket.MSG_DONTWAIT)
            if sent > 0:
                done += sent
                continue
            code = ctypes.get_errno()
            if code in _OF_EARLIER:
                sent = _sendmmsg(sock.fileno(), at, count - done, socket.MSG_DONTWAIT)
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
    size = 28 if int.from_bytes(ends[:2], _ORDER) == socket.AF_INET6 else 16
    return ends[:size], ends[_NAME_BYTES:]


def _send(sock: SocketType, data: bytes | memoryview, to: Address | None) -> None:
    if to is None:
        sock.send(data)
    else:
        sock.sendto(data, to.text)


def _address_of(buffer: mmap.mmap | memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
