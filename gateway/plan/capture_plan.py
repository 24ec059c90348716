"""What the TUN of a configuration takes by routing, and whether it may."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from gateway.config.schema import Config
from gateway.config.subject import overlap
from gateway.errors import CapabilityError
from gateway.plan.addresses import EVERYTHING, Network
from gateway.plan.capture import Capture
from gateway.plan.egress import ANYWHERE, Egress
from gateway.plan.host import HostFacts


def planned_capture(config: Config, ways: Iterable[Egress]) -> Capture | None:
    """What the TUN of a configuration takes by routing; None where it takes what is marked."""
    tun = config.tun
    if not tun.by_routing:
        return None
    taken = {"prefixes": tun.prefixes, "fake-ip": tun.fake_ip}
    return Capture(
        tun.name,
        taken.get(tun.capture, tuple(EVERYTHING.values())),
        tun.strategy,
        # A fake address is nobody's, whoever is dead.
        closed=config.inbound.on_failure == "closed" or tun.capture == "fake-ip",
        uids=tuple(dict.fromkeys(way.uid for way in ways if way.uid is not None)),
    )


def require_capture(config: Config, ways: Iterable[Egress], host: HostFacts) -> None:
    """Raise ``CapabilityError`` where what the TUN would take is in use here."""
    if config.tun.capture != "fake-ip":
        return
    for link in host.interfaces:
        for own in () if link.name == config.tun.name else link.addresses:
            if _fake(config, own.network):
                raise CapabilityError(
                    f"tun.fake_ip overlaps {own.network} of {link.name}: fake addresses may be"
                    " nobody's",
                    "choose a range that nobody uses",
                )
    for way in ways:
        if way.destination not in ANYWHERE and _fake(config, ip_network(way.destination)):
            raise CapabilityError(
                f"the server of outbound {way.outbound} has the fake address {way.destination}",
                "give its address in `server:`, or ask another name server",
            )


def _fake(config: Config, network: Network) -> bool:
    return any(overlap(pool, network) for pool in config.tun.fake_ip)


def taken(config: Config, ways: Iterable[Egress], host: HostFacts, address: str) -> bool:
    """Whether routes lead what is sent there into the TUN; static routes of others aside."""
    capture, wanted = planned_capture(config, ways), ip_address(address)
    if capture is None or wanted.is_multicast or wanted.is_loopback:
        return False
    near = (own.network for link in host.interfaces for own in link.addresses)
    return any(wanted in prefix for prefix in capture.prefixes) and not any(
        wanted in network for network in near
    )
