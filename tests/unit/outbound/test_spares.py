"""Associations that are ready before they are needed, on a server that the test plays."""

from __future__ import annotations

import errno
import socket

import pytest

from gateway.errors import UpstreamFailure
from gateway.flow import Endpoint
from gateway.kernel.sockets import SocketFactory, SocketOptions, endpoint
from gateway.outbound import spares
from gateway.outbound.association import Control
from gateway.outbound.socks5 import Socks5Outbound

GREETING, METHOD = b"\x05\x01\x00", b"\x05\x00"
REQUEST = b"\x05\x03\x00\x01" + bytes(6)
REFUSED = b"\x05\x07\x00\x01" + bytes(6)


@pytest.fixture(autouse=True)
def one(monkeypatch):
    """One spare, where a test does not say otherwise."""
    monkeypatch.setattr(spares, "LEAST", 1)


class User:
    """Waits for a control connection; notes what it is told."""

    def __init__(self) -> None:
        self.ready: list[Control] = []
        self.lost: list[tuple[UpstreamFailure, str]] = []

    def control_ready(self, control: Control) -> None:
        self.ready.append(control)

    def control_lost(self, control: Control, failure: UpstreamFailure, detail: str) -> None:
        del control
        self.lost.append((failure, detail))


class Rig:
    """An outbound that keeps spares, its server, and a relay that takes datagrams."""

    def __init__(self, plane) -> None:
        self.plane = plane
        self.server, self.where = plane.server()
        self.relay = plane.own(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.relay.bind(("127.0.0.1", 0))
        port = self.relay.getsockname()[1].to_bytes(2, "big")
        self.granted = b"\x05\x00\x00\x01\x7f\x00\x00\x01" + port
        self.outbound = Socks5Outbound(
            "home", plane.reactor, SocketFactory(None), self.where, SocketOptions(), warm_udp=True
        )
        self.spares = self.outbound.spares

    async def answer(self, answer: bytes | None = None) -> socket.socket:
        """Take one connection as far as its answer, and no further."""
        far = await self.plane.accept(self.server)
        assert await self.plane.read(far, len(GREETING)) == GREETING
        far.send(METHOD)
        assert await self.plane.read(far, len(REQUEST)) == REQUEST
        far.send(answer or self.granted)
        return far

    async def spare(self) -> socket.socket:
        """The same, until it is there."""
        count = len(self.spares)
        far = await self.answer()
        await self.plane.until(lambda: len(self.spares) > count)
        return far


def test_a_spare_has_all_that_a_datagram_takes(plane):
    async def scenario() -> None:
        rig, user = Rig(plane), User()
        await rig.spare()
        assert rig.outbound.carries_udp is True
        control = rig.spares.take(user)
        assert control.ready
        assert control.datagrams is not None
        assert endpoint(control.datagrams.getpeername()) == Endpoint(*rig.relay.getsockname())
        control.datagrams.send(b"at once")
        assert await plane.loop.sock_recv(rig.relay, 100) == b"at once"
        assert user.ready == [], "who takes one that is ready need not be told"
        await rig.spare()  # another takes its place
        control.close()
        assert control.datagrams is None
        rig.outbound.close()
        assert len(rig.spares) == 0

    plane.run(scenario())


def test_as_many_as_flows_ask_for(plane, monkeypatch):
    """Those that are on their way count, and what is asked for meanwhile is begun at once."""
    monkeypatch.setattr(spares, "LEAST", 3)

    async def scenario() -> None:
        rig, user = Rig(plane), User()
        for _ in range(3):
            await rig.spare()
        taken = [rig.spares.take(user) for _ in range(4)]
        assert [control.ready for control in taken] == [True, True, True, False]
        assert taken[0] is not taken[1]
        await rig.answer()
        await plane.until(lambda: user.ready == [taken[3]])
        for _ in range(3):
            await rig.spare()
        assert len(rig.spares) == 3
        for control in taken:
            control.close()
        rig.outbound.close()

    plane.run(scenario())


def test_what_is_lost_is_asked_for_again(plane, monkeypatch):
    """All at once, as when a server restarts."""
    monkeypatch.setattr(spares, "LEAST", 2)
    monkeypatch.setattr(spares, "RETRY_S", 0.05)

    async def scenario() -> None:
        rig = Rig(plane)
        for far in [await rig.spare() for _ in range(2)]:
            far.close()
        await plane.until(lambda: len(rig.spares) == 0)
        for _ in range(2):
            await rig.spare()
        rig.outbound.close()

    plane.run(scenario())


def test_a_server_that_grants_none(plane, monkeypatch):
    """It is known from then on; and asked again after long, as its owner may change it."""
    monkeypatch.setattr(spares, "ASK_AGAIN_S", 0.05)

    async def scenario() -> None:
        rig = Rig(plane)
        await rig.answer(REFUSED)
        await plane.until(lambda: rig.outbound.carries_udp is False)
        await rig.spare()
        assert rig.outbound.carries_udp is True
        rig.outbound.close()

    plane.run(scenario())


def test_a_server_that_goes_without_a_word_is_found_out(plane):
    """Nothing is ever said on the connection, so the kernel asks; in a minute at the most."""

    async def scenario() -> None:
        rig, user = Rig(plane), User()
        await rig.spare()
        control = rig.spares.take(user)
        sock = control._sock
        assert sock is not None
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle, interval, count = (
            sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert 10 <= idle + interval * count <= 60
        control.close()
        rig.outbound.close()

    plane.run(scenario())


def test_a_server_that_hangs_up_is_not_taken_at_its_word_at_once(plane, monkeypatch):
    """It may be ending; but where it has granted none, or hangs up for ever, it grants none."""
    monkeypatch.setattr(spares, "RETRY_S", 0.01)
    monkeypatch.setattr(spares, "RETRY_MOST_S", 0.01)

    async def hang_up(rig: Rig) -> None:
        far = await rig.plane.accept(rig.server)
        await rig.plane.read(far, len(GREETING))
        far.send(METHOD)
        await rig.plane.read(far, len(REQUEST))
        far.close()

    async def scenario() -> None:
        rig, user = Rig(plane), User()
        await hang_up(rig)
        await plane.until(lambda: rig.outbound.carries_udp is False)
        rig.outbound.close()
        rig = Rig(plane)
        await rig.spare()
        rig.spares.take(user).close()
        for count in range(spares.HANG_UPS):
            assert rig.outbound.carries_udp is True, count
            await hang_up(rig)
        await plane.until(lambda: rig.outbound.carries_udp is False)
        rig.outbound.close()

    plane.run(scenario())


def test_an_association_without_a_socket_is_none(plane, monkeypatch):
    """The connection goes, too; who has asked is told why."""

    async def scenario() -> None:
        rig, user = Rig(plane), User()
        await rig.spare()
        rig.spares.take(user).close()

        def cramped(relay: Endpoint) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(rig.spares, "_open_relay", cramped)
        control = rig.spares.take(user)
        far = await rig.answer()
        await plane.until(lambda: user.lost)
        assert user.lost == [(UpstreamFailure.RESOURCES, "Too many open files")]
        assert not control.ready
        assert await plane.read_to_end(far) == b""
        rig.outbound.close()

    plane.run(scenario())
