"""Errors that clients are told: a bounded number, of which one device does not get all."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gateway.flow import Endpoint
from gateway.icmp.errors import MOST_PER_DEVICE, MOST_PER_S
from gateway.udp.face import by_sockets
from gateway.wire.icmp_error import IcmpError

FAR = Endpoint("198.51.100.1", 443)


class Sockets:
    """Opens what is to send as somebody; ``sent`` is where each error went."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def open_icmp(self, source: str) -> Sockets:
        assert source == FAR.host
        return self

    def sendto(self, data: bytes, address: Any) -> None:
        assert data
        self.sent.append(address[0])

    def close(self) -> None:
        """There is nothing to close."""


def test_one_device_leaves_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.5]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    sockets = Sockets()
    errors = by_sockets(None, sockets).errors  # type: ignore[arg-type]

    def told(host: str, times: int) -> int:
        client = Endpoint(host, 4000)
        told = (
            errors.tell_of_datagram(IcmpError.PORT_UNREACHABLE, client, FAR) for _ in range(times)
        )
        return sum(told)

    assert told("192.168.20.1", 2 * MOST_PER_S) == MOST_PER_DEVICE
    assert told("192.168.20.2", 1) == 1
    others = sum(told(f"192.168.21.{n}", MOST_PER_DEVICE) for n in range(20))
    assert others == MOST_PER_S - MOST_PER_DEVICE - 1
    assert told("192.168.20.3", 1) == 0
    now[0] += 1
    assert told("192.168.20.1", 1) == 1
    assert len(sockets.sent) == MOST_PER_S + 1
