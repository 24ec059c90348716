"""The delay on the lab's way to the internet: late by at least what was asked, and nothing lost."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from gateway.lab import namespaces
from gateway.lab.lab import Lab
from gateway.lab.topology import FamilyNumber
from gateway.lab.traffic import fetch

DELAY_MS = 25
DOWNLOAD_BYTES = 10_000_000


@pytest.fixture(scope="module")
def slow_lab() -> Iterator[Lab]:
    with Lab(wan_delay_ms=DELAY_MS) as lab:
        lab.start_servers()
        lab.router.sysctl("net.ipv4.ip_forward", "1")
        lab.router.sysctl("net.ipv6.conf.all.forwarding", "1")
        yield lab


def round_trips_ms(lab: Lab, origin: str, address: str) -> list[float]:
    # One after the other: of several, ping waits for the last but twice as long as for the others.
    command = ["ping", "-n", "-c", "1", "-W", "20", address]
    output = "".join(lab.machines[origin].run(command).stdout for _ in range(3))
    return [float(time) for time in re.findall(r"time=([0-9.]+) ms", output)]


@pytest.mark.parametrize("origin", ["router", "desk"])
def test_a_round_trip_takes_the_delay_twice(slow_lab: Lab, origin: str) -> None:
    for address in slow_lab.topology.targets["web"]:
        times = round_trips_ms(slow_lab, origin, address)
        assert len(times) == 3
        assert min(times) >= 2 * DELAY_MS


@pytest.mark.parametrize("number", [4, 6])
def test_a_download_is_intact(slow_lab: Lab, number: FamilyNumber) -> None:
    done = fetch(
        slow_lab.client("desk"),
        slow_lab.topology.targets["web"],
        number,
        DOWNLOAD_BYTES,
        directory=slow_lab.directory,
    )
    assert done.intact, done.error


def test_it_leaves_nothing() -> None:
    with Lab(wan_delay_ms=DELAY_MS) as lab:
        stem = lab.router.namespace.removesuffix("router")
        assert f"{stem}delay" in namespaces.listed()
    assert not [name for name in namespaces.listed() if name.startswith(stem)]
