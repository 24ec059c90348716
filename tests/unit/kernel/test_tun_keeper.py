"""The TUN's keeper, without a kernel: what it opens it closes."""

from __future__ import annotations

import os
from ipaddress import IPv4Interface, IPv6Interface

import pytest

from gateway.errors import CapabilityError
from gateway.kernel import tun_keeper
from gateway.kernel.tun import TunSettings
from gateway.kernel.tun_keeper import TunKeeper

SETTINGS = TunSettings(
    "gw-none0", 1500, IPv4Interface("172.29.88.1/30"), IPv6Interface("fd00:88::1/126")
)


@pytest.mark.parametrize("opened", [1, 3])
def test_a_queue_that_cannot_be_had_leaves_none_open(monkeypatch, opened):
    fds = []

    def open_queue(_name):
        if len(fds) == opened:
            raise CapabilityError("no more")
        fds.append(os.open(os.devnull, os.O_RDONLY))
        return fds[-1]

    monkeypatch.setattr(tun_keeper, "open_queue", open_queue)
    monkeypatch.setattr(tun_keeper, "steer", lambda *_: None)
    keeper = TunKeeper()
    with pytest.raises(CapabilityError):
        keeper.keep(SETTINGS, 4)
    assert keeper.queues == ()
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
