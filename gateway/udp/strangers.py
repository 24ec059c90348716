"""Far ends that speak to a client unasked: where its socket is seen, anybody may answer."""

from __future__ import annotations

from ipaddress import ip_address

from gateway.errors import UpstreamFailure
from gateway.flow import FlowFacts
from gateway.outbound.reject import RejectOutbound
from gateway.routing import OwnTraffic, Routing


def may_speak(facts: FlowFacts, routing: Routing, own: OwnTraffic) -> bool:
    """Whether ``facts`` may be those of a flow that its far end begins.

    Whom the client must not speak to does not speak to it either.
    """
    if not _may_be(facts.destination.host, own):
        return False
    decision = routing.policy.settle(facts, routing.finder.now())
    outbound = routing.outbounds[decision.way]
    rejected = isinstance(outbound, RejectOutbound) and outbound.failure is UpstreamFailure.REJECTED
    return not rejected


def _may_be(host: str, own: OwnTraffic) -> bool:
    """Whether a host that a server names can be somebody out there.

    A socket with an address of this machine would take what is sent to its services, and
    nobody out there has one of the LAN, whose hosts are trusted by others.
    """
    try:
        address = ip_address(host)
    except ValueError:  # a name
        return False
    nobody = address.is_unspecified or address.is_multicast or address.is_loopback
    if nobody or address.is_link_local or host in own.addresses:
        return False
    return not any(address in network for network in own.lan)
