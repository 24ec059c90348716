"""Which queue of a TUN device takes a packet: a program that the kernel runs for each.

By itself the kernel spreads packets by a hash of their ends, and remembers for three seconds
by which queue answers came (``tun_select_queue`` of drivers/net/tun.c). Translation changes
the ends, so the two directions of a flow would meet different queues. This program takes what
goes to ``peer`` by its destination port alone: the number of the flow, which the queue that
opened it has chosen. Of the rest, TCP is spread by its ends, and all else by its source:
a client's datagrams have one address outside, and fragments, TCP's too, have no ports: who
puts those together sends them in anew (``gateway.kernel.tun_entrance``). An error that a
router tells of a flow goes where the flow is: it quotes the ends.

Sources: Documentation/bpf/standardization/instruction-set.rst, bpf(2) (BPF_PROG_LOAD),
<linux/if_tun.h> (TUNSETSTEERINGEBPF). Packets are read as classic BPF reads them, from the IP
header on; what is too short for that goes to the first queue.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from gateway.wire.ip import ICMP, ICMPV6, TCP

_TUNSETSTEERINGEBPF: Final = 0x8004_54E0
#: bpf(2) has no wrapper in the C library.
_SYSCALLS: Final = {"x86_64": 321, "aarch64": 280, "armv7l": 386, "i686": 357, "riscv64": 280}
_PROG_LOAD: Final = 5
_SOCKET_FILTER: Final = 1
_INSTRUCTION: Final = struct.Struct("=BBhi")
#: BPF_PROG_LOAD's attributes as far as they are set; the kernel takes the rest for zeros.
_ATTRIBUTES: Final = struct.Struct("=IIQQ")

# Opcodes: loads from the packet into r0, arithmetic of 32 bits, and jumps.
_BYTE, _HALF, _WORD = 0x30, 0x28, 0x20
_MOVE, _XOR, _MULTIPLY, _SHIFT, _SHIFT_UP, _MODULO = 0xBC, 0xAC, 0x24, 0x74, 0x64, 0x94
_AND: Final = 0x54
_UNLESS_EQUAL, _IF_EQUAL, _JUMP, _EXIT = 0x56, 0x16, 0x05, 0x95
_MOVE_64: Final = 0xBF
#: Knuth's: the golden ratio's share of 2^32.
_MIX: Final = 0x9E37_79B1
#: Of an IPv4 packet, where its flags and offset stand; more fragments, or an offset.
_PART, _FRAGMENT = 6, 0x3FFF
#: Types of errors: IPv4's "fragmentation needed" is one of the first (RFC 792, RFC 4443).
_UNREACHABLE, _TOO_BIG = 3, 2

#: An instruction: opcode, destination and source registers, where to jump, constant.
_Line = tuple[int, int, int, str, int]


def steer(fd: int, peers: tuple[IPv4Address, IPv6Address], queues: int) -> None:
    """Have the device's packets go to these queues, in the order in which they were attached.

    Raises ``OSError`` where this kernel, or this process' privileges, do not allow it.
    """
    code = program(peers, queues)
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"MIT")
    attributes = _ATTRIBUTES.pack(
        _SOCKET_FILTER,
        len(code) // _INSTRUCTION.size,
        ctypes.addressof(instructions),
        ctypes.addressof(licence),
    ).ljust(128, b"\0")
    number = _SYSCALLS.get(platform.machine())
    if number is None:
        raise OSError(f"the number of bpf(2) on {platform.machine()} is not known here")
    libc = ctypes.CDLL(None, use_errno=True)
    loaded: int = libc.syscall(number, _PROG_LOAD, attributes, len(attributes))
    if loaded < 0:
        code_number = ctypes.get_errno()
        raise OSError(code_number, os.strerror(code_number))
    try:
        # The device keeps the program.
        fcntl.ioctl(fd, _TUNSETSTEERINGEBPF, struct.pack("=i", loaded))
    finally:
        os.close(loaded)


def program(peers: tuple[IPv4Address, IPv6Address], queues: int) -> bytes:
    """The program, for an address of each family."""
    lines: list[_Line | str] = [
        (_MOVE_64, 6, 1, "", 0),  # loads from the packet go by r6
        _load(_BYTE, 0),
        (_SHIFT, 0, 0, "", 4),
        (_IF_EQUAL, 0, 0, "v6", 6),
        *_family("v4", peers[0].packed, source=12, protocol=9, ports=20),
        *_quoted("v4", 4, source=40, protocol=37, ports=48, icmp=(ICMP, 20, _UNREACHABLE)),
        "v6",
        *_family("v6", peers[1].packed, source=8, protocol=6, ports=40),
        *_quoted("v6", 16, source=56, protocol=54, ports=88, icmp=(ICMPV6, 40, _TOO_BIG)),
        "mix",
        *_stirred(16),
        *_stirred(15),
        (_SHIFT, 7, 0, "", 16),
        (_MOVE, 0, 7, "", 0),
        "modulo",
        (_MODULO, 0, 0, "", queues),
        (_EXIT, 0, 0, "", 0),
    ]
    return _assembled(lines)


def _family(name: str, peer: bytes, *, source: int, protocol: int, ports: int) -> list[_Line | str]:
    destination = source + len(peer)
    words = range(0, len(peer), 4)
    return [
        *(
            line
            for at in words
            for line in (
                _load(_WORD, destination + at),
                (_UNLESS_EQUAL, 0, 0, f"{name} other", int.from_bytes(peer[at : at + 4], "big")),
            )
        ),
        _load(_HALF, ports + 2),
        (_JUMP, 0, 0, "modulo", 0),
        f"{name} other",
        *_mixed(source, len(peer)),
        _load(_BYTE, protocol),
        (_UNLESS_EQUAL, 0, 0, f"{name} datagram", TCP),
        # With IPv6 the protocol of a fragment is that of the header which says so.
        *(_whole() if len(peer) == 4 else ()),
        *(line for at in words for line in _mixed_in(destination + at)),
        *_mixed_in(ports),
        (_JUMP, 0, 0, "mix", 0),
    ]


def _quoted(
    name: str, size: int, *, source: int, protocol: int, ports: int, icmp: tuple[int, int, int]
) -> list[_Line | str]:
    """An ICMP error about a packet to a client: as that client's own, whose ends are these.

    ``icmp``: its protocol, where its type stands, and which that is; the rest is of what is quoted.
    """
    number, at, kind = icmp
    return [
        f"{name} datagram",
        (_UNLESS_EQUAL, 0, 0, "mix", number),
        _load(_BYTE, at),
        (_UNLESS_EQUAL, 0, 0, "mix", kind),
        *_mixed(source + size, size),
        _load(_BYTE, protocol),
        (_UNLESS_EQUAL, 0, 0, "mix", TCP),
        _load(_HALF, ports + 2),
        (_MOVE, 7, 0, "", 0),
        (_SHIFT_UP, 7, 0, "", 16),
        *_mixed_in(ports, _HALF),
        *(line for word in range(0, 2 * size, 4) for line in _mixed_in(source + word)),
        (_JUMP, 0, 0, "mix", 0),
    ]


def _whole() -> list[_Line]:
    """An IPv4 packet that is not in fragments goes on."""
    return [_load(_HALF, _PART), (_AND, 0, 0, "", _FRAGMENT), (_UNLESS_EQUAL, 0, 0, "mix", 0)]


def _stirred(shift: int) -> list[_Line]:
    """A round that carries high bits to low ones, and back.

    The ports that a client takes one after the other differ in few bits, and never in the lowest.
    """
    return [
        (_MOVE, 8, 7, "", 0),
        (_SHIFT, 8, 0, "", shift),
        (_XOR, 7, 8, "", 0),
        (_MULTIPLY, 7, 0, "", _MIX),
    ]


def _load(size: int, at: int) -> _Line:
    return (size, 0, 0, "", at)


def _mixed(at: int, size: int) -> list[_Line]:
    """An address, and nothing else so far."""
    rest = (line for word in range(4, size, 4) for line in _mixed_in(at + word))
    return [_load(_WORD, at), (_MOVE, 7, 0, "", 0), *rest]


def _mixed_in(at: int, size: int = _WORD) -> tuple[_Line, _Line]:
    return (_load(size, at), (_XOR, 7, 0, "", 0))


def _assembled(lines: list[_Line | str]) -> bytes:
    """Instructions (include/uapi/linux/bpf.h, ``struct bpf_insn``), their jumps counted."""
    places: dict[str, int] = {}
    code: list[_Line] = []
    for line in lines:
        if isinstance(line, str):
            places[line] = len(code)
        else:
            code.append(line)
    return b"".join(
        _INSTRUCTION.pack(
            opcode,
            source << 4 | destination,
            places[target] - at - 1 if target else 0,
            constant - (1 << 32) if constant >> 31 else constant,
        )
        for at, (opcode, destination, source, target, constant) in enumerate(code)
    )
