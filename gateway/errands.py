"""Connections of the gateway's own, through the outbounds that its configuration names."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address
from itertools import islice
from typing import Final

from gateway.blueprint import Blueprint
from gateway.config.outbounds import Socks5Outbound
from gateway.config.schema import Config
from gateway.errors import GatewayError
from gateway.flow import Endpoint
from gateway.groups.standing import paths
from gateway.kernel.reactor import Reactor
from gateway.kernel.sockets import SocketFactory, resolve
from gateway.outbound import socks5
from gateway.outbound.base import Outbound
from gateway.outbound.board import TRIED_AT_MOST
from gateway.outbound.leg import open_leg

#: A resolver that does not answer must not hold up the threads of the loop.
_resolving: Final = ThreadPoolExecutor(4, "resolving")


def connector(
    plan: Blueprint, config: Config, via: str
) -> Callable[[Endpoint], Awaitable[socket.socket]]:
    """What opens connections through an outbound, marked as all that we open.

    A SOCKS server is asked by name; for any other way out this machine resolves. Of a group,
    members are tried in their order. What is returned raises ``GatewayError``.
    """

    async def connect(target: Endpoint) -> socket.socket:
        problem = GatewayError(f"{via} has no way out")
        ways = paths(plan.groups, via, lambda _: target.host)
        for way in islice(ways, TRIED_AT_MOST):
            try:
                return await _connect(plan, config, way[-1], target)
            except GatewayError as error:
                problem = error
        raise problem

    return connect


async def _connect(plan: Blueprint, config: Config, via: str, target: Endpoint) -> socket.socket:
    factory, recipe = SocketFactory(plan.bypass), plan.outbounds[via]
    asks_by_name = isinstance(config.outbound(via), Socks5Outbound)
    if recipe.func is socks5.Socks5Outbound:
        # For one connection, nothing is kept ready, and nothing tried out.
        recipe = partial(recipe, handshake="strict", warm=False, warm_udp=False)

    def make(reactor: Reactor) -> Outbound:
        outbound: Outbound = recipe(reactor=reactor, factory=factory)
        return outbound

    hosts: tuple[str, ...] = (target.host,)
    if not asks_by_name and not _is_address(target.host):
        loop = asyncio.get_running_loop()
        hosts = await loop.run_in_executor(_resolving, resolve, target.host)
    problem = GatewayError(f"{target.host} does not resolve", "check this machine's resolver")
    for host in hosts:
        try:
            return await open_leg(make, Endpoint(host, target.port), config.timeouts.connect)
        except GatewayError as error:
            problem = GatewayError(f"{target} by outbound {via}: {error}", error.hint)
    raise problem


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
