"""The data plane's objects for one configuration: outbounds, and what decides among them."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from gateway.assembly import Assembly, device_for
from gateway.config.schema import DirectOutbound, RejectOutbound, Socks5Outbound
from gateway.decision import DIRECT, REJECT
from gateway.dispatch import OwnTraffic, Routing
from gateway.errors import UpstreamFailure
from gateway.flow import Endpoint
from gateway.kernel.guard import Finding
from gateway.kernel.reactor import Reactor
from gateway.kernel.sockets import Egress, SocketFactory
from gateway.outbound import direct, reject, socks5
from gateway.outbound.base import Outbound
from gateway.wire.socks5 import Credentials


def routing(
    assembly: Assembly, found: Iterable[Finding], reactor: Reactor, factory: SocketFactory
) -> Routing:
    """Everything that a reload swaps. An outbound that the guard refused refuses its flows."""
    by_outbound: dict[str, list[Finding]] = {}
    for finding in found:
        by_outbound.setdefault(finding.egress.outbound, []).append(finding)
    outbounds: dict[str, Outbound] = {}
    for name in (DIRECT, REJECT, *assembly.config.outbounds):
        settings = assembly.config.outbound(name)
        proofs = by_outbound.get(name, [])
        if isinstance(settings, RejectOutbound):
            outbounds[name] = reject.RejectOutbound(name)
        elif proofs and not any(proof.ok for proof in proofs):
            outbounds[name] = reject.RejectOutbound(
                name, UpstreamFailure.UNREACHABLE, proofs[0].reason
            )
        elif isinstance(settings, DirectOutbound):
            outbounds[name] = _direct(name, settings, reactor, factory)
        else:
            outbounds[name] = _socks5(name, settings, assembly, proofs, reactor, factory)
    return Routing(assembly.policy, outbounds, assembly.config.timeouts)


def own_traffic(assembly: Assembly) -> OwnTraffic:
    """What the loop detector must know of this machine."""
    return OwnTraffic(assembly.host.addresses, assembly.config.lan.this_machine)


def _direct(
    name: str, settings: DirectOutbound, reactor: Reactor, factory: SocketFactory
) -> Outbound:
    egress = Egress(
        device=settings.interface if settings.route != "mark" else None,
        source=None if settings.source is None else str(settings.source),
    )
    return direct.DirectOutbound(name, reactor, factory, egress, settings.preserve_source)


def _socks5(
    name: str,
    settings: Socks5Outbound,
    assembly: Assembly,
    proofs: list[Finding],
    reactor: Reactor,
    factory: SocketFactory,
) -> Outbound:
    addresses = [proof.egress.destination for proof in proofs if proof.ok]
    if not addresses:
        return reject.RejectOutbound(
            name, UpstreamFailure.UNREACHABLE, f"{settings.server} does not resolve"
        )
    address = addresses[0]
    credentials = None
    if settings.username is not None and settings.password is not None:
        credentials = Credentials(settings.username, settings.password.get_secret_value())
    return socks5.Socks5Outbound(
        name,
        reactor,
        factory,
        Endpoint(str(ip_address(address)), settings.port),
        Egress(device=device_for(settings, address, assembly.host)),
        credentials,
    )
