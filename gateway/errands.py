"""Connections of the gateway's own, through the outbounds that its configuration names."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

from gateway.blueprint import Blueprint
from gateway.config.outbounds import Socks5Outbound
from gateway.config.schema import Config
from gateway.errors import GatewayError
from gateway.flow import Endpoint
from gateway.kernel.reactor import Reactor
from gateway.kernel.sockets import SocketFactory, resolve
from gateway.outbound.base import Outbound
from gateway.outbound.leg import open_leg


def connector(
    plan: Blueprint, config: Config, via: str
) -> Callable[[Endpoint], Awaitable[socket.socket]]:
    """What opens connections through an outbound, marked as all that we open.

    A SOCKS server is asked by name; for any other way out this machine resolves. What is
    returned raises ``GatewayError``.
    """
    recipe, factory = plan.outbounds[via], SocketFactory(plan.bypass)
    asks_by_name = isinstance(config.outbound(via), Socks5Outbound)

    def make(reactor: Reactor) -> Outbound:
        outbound: Outbound = recipe(reactor=reactor, factory=factory)
        return outbound

    async def connect(target: Endpoint) -> socket.socket:
        hosts: tuple[str, ...] = (target.host,)
        if not asks_by_name and not _is_address(target.host):
            hosts = await asyncio.to_thread(resolve, target.host)
        problem = GatewayError(f"{target.host} does not resolve", "check this machine's resolver")
        for host in hosts:
            try:
                return await open_leg(make, Endpoint(host, target.port), config.timeouts.connect)
            except GatewayError as error:
                problem = GatewayError(f"{target} by outbound {via}: {error}", error.hint)
        raise problem

    return connect


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
