"""ICMP errors as the kernel's error queue has them, and whatever else there may be."""

from __future__ import annotations

import select
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.kernel.error_queue import IP_RECVERR, IPV6_RECVERR, Told, ask_for_errors, told

KINDS = st.sampled_from([IP_RECVERR, IPV6_RECVERR, 0, 8])


@given(st.lists(st.tuples(st.integers(0, 41), KINDS, st.binary(max_size=60)), max_size=3))
def test_any_ancillary_data_is_an_error_or_none(control: list[tuple[int, int, bytes]]) -> None:
    for each in told(control):
        assert each.family in (4, 6)
        assert each.host == "" or (":" in each.host) == (each.family == 6)


@given(
    st.sampled_from([4, 6]),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 0xFFFF),
    st.data(),
)
def test_what_is_told(family: int, kind: int, code: int, info: int, data: st.DataObject) -> None:
    host = data.draw(st.ip_addresses(v=family).filter(lambda host: int(host) != 0))
    error = struct.pack("=IBBBBII", 111, 2 if family == 4 else 3, kind, code, 0, info, 0)
    at = struct.pack("=HHI" if family == 6 else "=HH", 0, 0, *([0] if family == 6 else []))
    level, number = (0, IP_RECVERR) if family == 4 else (41, IPV6_RECVERR)
    message = error + at + host.packed + bytes(8)
    # As the C library writes it, which knows IPv4 in IPv6: ::ffff:192.0.2.1.
    shown = socket.inet_ntop(socket.AF_INET6 if family == 6 else socket.AF_INET, host.packed)
    assert list(told([(level, number, message)])) == [Told(family, kind, code, info, shown)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_kernels_own(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.socket(family, socket.SOCK_DGRAM) as taken,
        socket.socket(family, socket.SOCK_DGRAM) as sock,
    ):
        taken.bind((host, 0))
        # So it is for its peer alone; and nobody else has the port, who would take what comes.
        taken.connect((host, 9))
        where = taken.getsockname()
        ask_for_errors(sock)
        sock.sendto(b"anybody?", where)
        polling = select.poll()
        polling.register(sock, 0)
        assert polling.poll(20_000) == [(sock.fileno(), select.POLLERR)]
        _, control, _, remote = sock.recvmsg(0, 512, socket.MSG_ERRQUEUE)
        assert remote[:2] == where[:2]
        unreachable = (6, 1, 4) if family == socket.AF_INET6 else (4, 3, 3)
        assert list(told(control)) == [Told(*unreachable, 0, host)]
