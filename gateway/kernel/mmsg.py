"""recvmmsg(2) and sendmmsg(2), of the C library: Python has neither."""

from __future__ import annotations

import ctypes
import struct
from typing import Final


class Iovec(ctypes.Structure):
    """struct iovec (readv(2))."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Msghdr(ctypes.Structure):
    """struct msghdr (recvmsg(2))."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class Mmsghdr(ctypes.Structure):
    """struct mmsghdr (recvmmsg(2))."""

    _fields_ = (("header", Msghdr), ("length", ctypes.c_uint))


_LIBC: Final = ctypes.CDLL(None, use_errno=True)
recvmmsg = _LIBC.recvmmsg
sendmmsg = _LIBC.sendmmsg
recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)

HEADER_BYTES: Final = ctypes.sizeof(Mmsghdr)
#: Of an array of ``struct mmsghdr`` seen as 32-bit words: from one length to the next, and the
#: first of them.
LENGTH_STEP: Final = HEADER_BYTES // 4
LENGTH_AT: Final = Mmsghdr.length.offset // 4
#: The same of ``msg_controllen``, in words of ``size_t``.
CONTROL_STEP: Final = HEADER_BYTES // ctypes.sizeof(ctypes.c_size_t)
CONTROL_AT: Final = Msghdr.controllen.offset // ctypes.sizeof(ctypes.c_size_t)
#: struct iovec, to be written without an object for it.
IOVEC: Final = struct.Struct("PN")
