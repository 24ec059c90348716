"""From what was compiled and proved to what a data plane is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

from gateway.assembly import Assembly, congestion_controls
from gateway.blueprint import GUARDED, Blueprint, ListenOn, Recipe, Safety
from gateway.config.groups import ends_of, stands_for
from gateway.config.outbounds import BUILT_IN, DirectOutbound, Group, RejectOutbound, Socks5Outbound
from gateway.config.scalars import port_range
from gateway.config.schema import Config, Sniff
from gateway.decision import DIRECT
from gateway.errors import UpstreamFailure
from gateway.facts import FactSources
from gateway.flow import Endpoint, Protocol
from gateway.groups.standing import Standing
from gateway.groups.state import Observed, standings
from gateway.icmp.limits import EchoSettings
from gateway.inbound.queue import Judgement
from gateway.kernel.congestion import for_lan, for_outbound
from gateway.kernel.guard import Finding, Outcome
from gateway.kernel.privilege import Capability
from gateway.kernel.sockets import SocketOptions, family_of
from gateway.kernel.tun import TunSettings
from gateway.marks import Mark
from gateway.outbound import direct, reject, socks5
from gateway.plan.addresses import Network
from gateway.plan.egress import Egress
from gateway.plan.lookups import needed_names
from gateway.routing import FlowTimeouts, OwnTraffic
from gateway.sniffing import SniffLimits
from gateway.udp.flow import UdpSettings
from gateway.wire.socks5 import Credentials


def blueprint(
    assembly: Assembly,
    found: Iterable[Finding],
    safety: Safety = GUARDED,
    groups: Mapping[str, Standing] | None = None,
) -> Blueprint:
    """What the assembly asks of a data plane, with what the guard found.

    ``groups``: how they stand; without it, as long as nothing is known of their members.
    """
    config = assembly.config
    return Blueprint(
        policy=assembly.policy,
        outbounds=_recipes(assembly, found if safety.prove else map(_believed, found)),
        timeouts=FlowTimeouts(
            config.timeouts.connect, config.timeouts.idle, config.timeouts.half_closed
        ),
        sniff=_sniff_limits(config.sniff),
        udp=_udp_settings(assembly),
        echo=_echo_settings(assembly),
        judgement=_judgement(assembly),
        own=OwnTraffic(
            _own_addresses(assembly),
            config.takes_own,
            needed_names(config),
            frozenset(assembly.host.resolvers),
            _lan(assembly),
        ),
        listen_on=_listen_on(assembly),
        bypass=assembly.marks.bypass if safety.mark else None,
        detect_loops=safety.detect,
        log_level=config.log.level,
        log_format=config.log.format,
        groups=standings(config, Observed()) if groups is None else groups,
        facts=FactSources(
            config.time_zone, _leases(assembly), _own_addresses(assembly), config.tun.name
        ),
        fakes=config.tun.fake_ip if config.tun.capture == "fake-ip" else (),
        capabilities=_capabilities(assembly),
    )


def _believed(finding: Finding) -> Finding:
    return replace(finding, outcome=Outcome.CLEAR)


def _own_addresses(assembly: Assembly) -> frozenset[str]:
    """Those of this machine, with those of a device that is made when the gateway starts."""
    tun = assembly.config.tun
    made = (str(tun.ipv4.ip), str(tun.ipv6.ip)) if assembly.config.inbound.tunnelled else ()
    return assembly.host.addresses | {*made}


def _lan(assembly: Assembly) -> tuple[Network, ...]:
    """The networks of the LAN interfaces."""
    wanted = assembly.config.lan.interfaces
    links = (link for link in assembly.host.interfaces if link.name in wanted)
    return tuple(sorted({a.network for link in links for a in link.addresses}, key=str))


def _leases(assembly: Assembly) -> tuple[str, ...]:
    """The lease files; paths are relative to the configuration file."""
    return tuple(str(assembly.path.parent / path) for path in assembly.config.lan.leases)


def _sniff_limits(settings: Sniff) -> SniffLimits:
    ports = tuple(map(port_range, settings.ports)) or None
    return SniffLimits(settings.timeout, settings.bytes, ports)


def _judgement(assembly: Assembly) -> Judgement | None:
    """What becomes of packets whose flow's outbound is known: the kernel's part of each."""
    inbound, marks = assembly.config.inbound, assembly.marks
    if inbound.classify != "nfqueue":
        return None
    refusals = {"tcp-reset": marks.refuse, "icmp": marks.refuse_icmp, "drop": None}
    plain = assembly.config.outbound(DIRECT)
    answers: dict[str, Mark | None] = {}
    for name in (*BUILT_IN, *assembly.config.outbounds):
        outbound = stands_for(assembly.config, name)
        if isinstance(outbound, RejectOutbound):
            answers[name] = refusals[outbound.answer]
        else:
            answers[name] = marks.direct if outbound == plain else marks.divert
    left = {Protocol.UDP: inbound.udp == "off", Protocol.ICMP: inbound.icmp == "direct"}
    carried = tuple(protocol for protocol in Protocol if not left.get(protocol))
    return Judgement(inbound.queue, answers, marks.divert, marks.direct, carried)


def _udp_settings(assembly: Assembly) -> UdpSettings:
    """Those of one process: clients are spread over all of them.

    By TPROXY each socket of a client by itself, by the TUN all of a client.
    """
    timeouts, udp, workers = assembly.config.timeouts, assembly.config.udp, assembly.workers
    share = 1 if assembly.config.inbound.udp == "tun" else workers
    return UdpSettings(
        idle=timeouts.udp,
        idle_dns=timeouts.udp_dns,
        idle_stream=timeouts.udp_stream,
        flows=-(-udp.flows // workers),
        flows_per_device=-(-udp.flows_per_device // share),
        symmetric=udp.nat == "symmetric",
    )


def _echo_settings(assembly: Assembly) -> EchoSettings:
    """Those of one process: what a client sends besides TCP comes by one queue of the TUN."""
    config, workers = assembly.config, assembly.workers
    icmp = config.icmp
    return EchoSettings(
        timeout=config.timeouts.icmp,
        flows=-(-icmp.flows // workers),
        flows_per_device=icmp.flows_per_device,
        rate=-(-icmp.rate // workers),
        rate_per_device=icmp.rate_per_device,
        pretend=config.inbound.icmp == "pretend",
    )


def _listen_on(assembly: Assembly) -> ListenOn:
    settings, host = assembly.config.inbound, assembly.host
    system = host.sysctls.get("net.ipv4.tcp_congestion_control")
    congestion = for_lan(settings.congestion_control, system)
    return ListenOn(
        settings.tcp,
        settings.port,
        host.has("ipv6"),
        settings.udp == "tproxy",
        congestion,
        _tun(assembly.config),
        settings.udp == "tun",
    )


def _tun(config: Config) -> TunSettings | None:
    if not config.inbound.tunnelled:
        return None
    return TunSettings(config.tun.name, config.tun.mtu, config.tun.ipv4, config.tun.ipv6)


def _capabilities(assembly: Assembly) -> frozenset[Capability]:
    """To mark, to be transparent and to bind to a device; low ports, to answer from them.

    Besides, where the configuration asks for it: queues beyond the system's limits, packet
    queues, congestion control that not everybody may use, and sockets of another network
    namespace. Who reads a TUN keeps what all but the last of these take, for a reload: no other
    process could go on with the flows in there.
    """
    config = assembly.config
    needed = {Capability.NET_RAW, Capability.NET_BIND_SERVICE}
    free = assembly.host.sysctls.get("net.ipv4.tcp_allowed_congestion_control", "").split()
    privileged = set(congestion_controls(config)) - set(free)
    inbound = config.inbound
    if inbound.udp != "off" or inbound.tunnelled or inbound.classify == "nfqueue" or privileged:
        needed.add(Capability.NET_ADMIN)
    if any(way.netns is not None for way in assembly.ways):
        needed.add(Capability.SYS_ADMIN)
    return frozenset(needed)


def _recipes(assembly: Assembly, found: Iterable[Finding]) -> dict[str, Recipe]:
    """One for each outbound; where the guard refused it, one that refuses its flows."""
    proofs: dict[str, list[Finding]] = {}
    for finding in found:
        proofs.setdefault(finding.egress.outbound, []).append(finding)
    for_udp = _ends_for_udp(assembly)
    recipes = {
        name: _recipe(name, assembly, proofs.get(name, []), for_udp=name in for_udp)
        for name in (*BUILT_IN, *assembly.config.outbounds)
        if not isinstance(assembly.config.outbound(name), Group)
    }
    # A rule's mark makes another way of its outbound (``Decision.way``).
    for decision in assembly.policy.decisions:
        if decision.mark is not None:
            recipes[decision.way] = _marked(recipes[decision.outbound], decision.mark)
    return recipes


def _marked(recipe: Recipe, mark: Mark) -> Recipe:
    """The same outbound, whose packets leave with a mark of the owner's besides."""
    options = recipe.keywords.get("options")
    return partial(recipe, options=replace(options, mark=mark)) if options else recipe


def _recipe(name: str, assembly: Assembly, proofs: list[Finding], *, for_udp: bool) -> Recipe:
    settings = assembly.config.outbound(name)
    if isinstance(settings, RejectOutbound):
        silent = settings.answer == "drop"
        return partial(reject.refusal, name, UpstreamFailure.REJECTED, "", silent=silent)
    if proofs and not any(proof.ok for proof in proofs):
        return partial(reject.refusal, name, UpstreamFailure.UNREACHABLE, proofs[0].reason)
    usable = [proof for proof in proofs if proof.ok]
    if isinstance(settings, DirectOutbound):
        return _direct(name, settings, proofs)
    assert isinstance(settings, Socks5Outbound), "a group is made of others"
    if not usable:
        return partial(
            reject.refusal, name, UpstreamFailure.UNREACHABLE, f"{settings.server} does not resolve"
        )
    return _socks5(name, settings, usable[0].egress, assembly, for_udp=for_udp)


def _direct(name: str, settings: DirectOutbound, proofs: list[Finding]) -> Recipe:
    return partial(
        direct.DirectOutbound,
        name,
        options=replace(
            _options(*(proof.egress for proof in proofs)),
            congestion=for_outbound(settings.congestion_control),
        ),
        preserve_source=settings.preserve_source,
        refused={
            family_of(proof.egress.destination): proof.reason for proof in proofs if not proof.ok
        },
    )


def _options(*ways: Egress) -> SocketOptions:
    """What the ways of one outbound ask of its sockets: the same, but for the source."""
    if not ways:
        return SocketOptions()
    sources = tuple(way.source for way in ways if way.source is not None)
    return SocketOptions(device=ways[0].device, sources=sources, netns=ways[0].netns)


def _socks5(
    name: str, settings: Socks5Outbound, way: Egress, assembly: Assembly, *, for_udp: bool
) -> Recipe:
    credentials = None
    if settings.username is not None and settings.password is not None:
        credentials = Credentials(settings.username, settings.password.get_secret_value())
    return partial(
        socks5.Socks5Outbound,
        name,
        server=Endpoint(way.destination, settings.port),
        options=replace(
            _options(way),
            speaks_first=True,
            fast_open=settings.fast_open,
            congestion=for_outbound(settings.congestion_control),
        ),
        credentials=credentials,
        handshake=settings.handshake,
        warm=settings.pool == "auto",
        by_name=assembly.config.sniff.override == "target",
        udp=None if settings.udp == "auto" else settings.udp,
        warm_udp=for_udp,
    )


def _ends_for_udp(assembly: Assembly) -> frozenset[str]:
    """The outbounds that some rule sends datagrams to, be it by a group."""
    if assembly.config.inbound.udp == "off":
        return frozenset()
    named = {
        rule.outbound
        for rule in assembly.written.every_rule
        if not rule.protocols or Protocol.UDP in rule.protocols
    }
    return frozenset(end for name in named for end in ends_of(assembly.config, name))
