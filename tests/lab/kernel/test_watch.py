from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from pyroute2 import AsyncIPRoute

from gateway.kernel.watch import watch

from .namespace import Namespace


async def calls_after(ns: Namespace, *commands: str) -> int:
    """Starts a watch, runs each command and awaits the call it leads to; counts the calls."""
    called = asyncio.Queue[None]()
    count = 0

    async def changed() -> None:
        nonlocal count
        count += 1
        await called.put(None)

    watching = asyncio.create_task(watch(changed, debounce_s=0.05))
    try:
        # Until the socket is bound, events go unseen: try until one is seen.
        async with asyncio.timeout(60):
            while not count:
                await asyncio.to_thread(ns.run, "ip", "link", "set", "lan0", "mtu", "1400")
                await asyncio.to_thread(ns.run, "ip", "link", "set", "lan0", "mtu", "1500")
                await asyncio.sleep(0.1)
            for command in commands:
                await _quiet(called)
                await asyncio.to_thread(ns.sh, command)
                await called.get()
    finally:
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
    return count


async def _quiet(called: asyncio.Queue[None]) -> None:
    while True:
        try:
            await asyncio.wait_for(called.get(), 0.3)
        except TimeoutError:
            return


def test_each_kind_of_change_is_seen(ns: Namespace) -> None:
    commands = (
        "ip link set wan0 down",
        "ip address add 192.0.2.1/32 dev lan0",
        "ip -6 address add 2001:db8:9::1/128 dev lan0",
        "ip route add 198.51.100.0/24 via 192.168.20.9",
        "ip -6 route add 2001:db8:51::/48 via fd00:20::9",
        "ip rule add pref 100 lookup 100",
        "ip -6 rule add pref 100 lookup 100",
    )
    assert ns.call(asyncio.run, calls_after(ns, *commands)) > len(commands)


def test_a_burst_is_one_call(ns: Namespace) -> None:
    burst = "for n in $(seq 1 200); do echo route add 10.1.$n.0/24 dev lan0; done | ip -batch -"
    assert ns.call(asyncio.run, calls_after(ns, burst)) < 20


def test_lost_events_are_an_event(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket overflows for real: its buffer is tiny, and the loop does not read."""

    def small(*arguments: object, **options: object) -> AsyncIPRoute:
        return AsyncIPRoute(rcvbuf=1)

    monkeypatch.setattr("gateway.kernel.watch.AsyncIPRoute", small)
    burst = "for n in $(seq 1 250); do echo route add 10.1.$n.0/24 dev lan0; done | ip -batch -"
    # More changes than the buffer holds, twice: the watch lives on after the first.
    assert ns.call(asyncio.run, calls_after(ns, burst, burst.replace("10.1.", "10.2."))) > 2


def test_an_error_of_the_callback_ends_the_watch(ns: Namespace) -> None:
    async def broken() -> None:
        raise ValueError("broken")

    async def main(disturb: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            watching = asyncio.create_task(watch(broken, debounce_s=0.05))
            while not watching.done():
                await asyncio.to_thread(disturb)
                await asyncio.sleep(0.1)
            await watching

    def disturb() -> None:
        ns.sh("ip link set lan0 mtu 1400; ip link set lan0 mtu 1500")

    with pytest.raises(ExceptionGroup) as caught:
        ns.call(asyncio.run, main(disturb))
    assert caught.group_contains(ValueError)
