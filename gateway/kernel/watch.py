"""Waits for changes of links, addresses, routes, ip rules and nftables; says only *that*.

The events themselves are not replayed: a link that goes down takes its IPv4 routes along
without a word (no RTM_DELROUTE), so whoever listens must read the state anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from pyroute2 import AsyncIPRoute
from pyroute2.netlink import rtnl
from pyroute2.netlink.exceptions import NetlinkError

from gateway.kernel.netlink import firewall_events, messages

_GROUPS = (
    rtnl.RTMGRP_LINK
    | rtnl.RTMGRP_IPV4_IFADDR
    | rtnl.RTMGRP_IPV4_ROUTE
    | rtnl.RTMGRP_IPV4_RULE
    | rtnl.RTMGRP_IPV6_IFADDR
    | rtnl.RTMGRP_IPV6_ROUTE
    | 1 << (19 - 1)  # RTNLGRP_IPV6_RULE of <linux/rtnetlink.h>, which pyroute2 does not name
)

_NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
#: NEW and DEL of table, chain and rule (enum nf_tables_msg_types). Sets' elements are left out:
#: their owners, and our own dead-man set, change them all the time.
_STRUCTURE = frozenset({0, 2, 3, 5, 6, 8})

_log = logging.getLogger(__name__)


async def watch(changed: Callable[[], Awaitable[object]], debounce_s: float = 0.2) -> None:
    """Await ``changed`` after each burst of events; runs until it is cancelled.

    ``debounce_s`` (seconds) after the first event of a burst, all those up to then count as
    one. An event during ``changed`` leads to another call. What ``changed`` raises ends the
    watch.
    """
    stirred = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_listen(stirred, debounce_s), name="netlink events")
        tasks.create_task(_listen_firewall(stirred), name="nftables events")
        while True:
            await stirred.wait()
            await asyncio.sleep(debounce_s)
            stirred.clear()
            await changed()


async def _listen(stirred: asyncio.Event, retry_s: float) -> None:
    while True:
        try:
            async with AsyncIPRoute() as netlink:
                await netlink.bind(groups=_GROUPS)
                while True:
                    # get() ends after each batch.
                    async for _ in netlink.get():
                        stirred.set()
        except (OSError, NetlinkError) as error:
            # ENOBUFS: events were lost, so anything may have changed (netlink(7)).
            _log.debug("netlink events were lost: %s", error)
            stirred.set()
        await asyncio.sleep(retry_s)


async def _listen_firewall(stirred: asyncio.Event) -> None:
    """Another program's firewall may flush ours, or begin to drop what we divert."""
    loop = asyncio.get_running_loop()
    try:
        events = firewall_events()
    except OSError as error:
        _log.debug("no nftables events on this kernel: %s", error)
        return
    with events:
        while True:
            try:
                data = await loop.sock_recv(events, 65536)
            except OSError:
                stirred.set()  # ENOBUFS: some were lost
                continue
            kinds = [kind for kind, _ in messages(data)]
            if any(kind >> 8 == _NFTABLES and kind & 0xFF in _STRUCTURE for kind in kinds):
                stirred.set()
