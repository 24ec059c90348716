"""From a configuration file to all that a check, a plan or a run needs.

Reads the file, the machine and, for upstreams given by name, the resolver; then
only computes. Call from a thread without an event loop.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypeGuard

from gateway.config import findings as config_findings
from gateway.config.groups import ends_of
from gateway.config.load import load
from gateway.config.outbounds import DirectOutbound, Socks5Outbound
from gateway.config.schema import Config
from gateway.config.subject import Subject
from gateway.errors import ConfigError, GatewayError, LoopError, Problem
from gateway.kernel import accounts, congestion
from gateway.kernel.guard import Finding, Outcome, prove
from gateway.kernel.probe import probe_host
from gateway.kernel.sockets import resolve
from gateway.marks import Marks
from gateway.plan.backend import choose_backend, transparent
from gateway.plan.build import build_plan
from gateway.plan.capture_plan import require_capture
from gateway.plan.egress import Egress
from gateway.plan.host import HostFacts
from gateway.plan.lookups import Lookup, through_themselves
from gateway.plan.model import Backend, Plan
from gateway.plan.strategies import egresses
from gateway.policy.assertions import require_assertions
from gateway.policy.compile import Accounts, compile_policy
from gateway.policy.engine import Policy
from gateway.policy.udp_fallback import without_udp
from gateway.rulesets.geo import open_geography
from gateway.rulesets.store import RuleSetStore

#: Names of servers that are looked up at a time.
LOOKUPS_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Assembly:
    """One configuration, compiled for this machine.

    ``upstreams``: addresses of each SOCKS server, by outbound; empty for a name that does
    not resolve now. ``written`` is the policy as it stands in the file, ``policy`` what it
    means where the outbounds ``unable`` carry no UDP.
    """

    path: Path
    config: Config
    store: RuleSetStore
    written: Policy
    unable: frozenset[str]
    policy: Policy
    host: HostFacts
    backend_reason: str
    plan: Plan
    upstreams: Mapping[str, tuple[str, ...]]

    @property
    def backend(self) -> Backend:
        """The firewall that carries the plan."""
        return self.plan.backend

    @property
    def workers(self) -> int:
        """How many processes carry flows."""
        return _workers(self.config)

    @property
    def ways(self) -> tuple[Egress, ...]:
        """Every way out, in the order of the file."""
        return egresses(self.config, self.host, self.upstreams)

    @property
    def foreseen(self) -> bool:
        """Whether ways can be proved only once the plan stands in the kernel."""
        return self.config.tun.by_routing or any(way.entries for way in self.ways)

    @property
    def lookups(self) -> tuple[Lookup, ...]:
        """Names of servers that are looked up by the outbounds which need them."""
        return through_themselves(self.config, self.policy, self.host)

    @property
    def marks(self) -> Marks:
        """The bits of the packet mark that this configuration gives us."""
        return Marks(self.config.marks.base)


def assemble(
    path: Path,
    backend: Literal["auto", "iptables", "nftables"] | None = None,
    unable: frozenset[str] = frozenset(),
) -> Assembly:
    """Read and compile a configuration; ``backend`` overrides what it says.

    ``unable``: outbounds that have turned out to carry no UDP. Raises ``ConfigError`` for
    the file, ``CapabilityError`` for the machine.
    """
    loaded = load(path)
    config = loaded.config
    store = RuleSetStore(loaded)
    policy = compile_policy(config, store.load(), open_geography(store), named_accounts(store))
    require_assertions(loaded, policy)
    wanted = backend or config.inbound.backend
    nfqueue = config.inbound.classify == "nfqueue"
    host = probe_host(wanted, nfqueue=nfqueue)
    chosen, reason = choose_backend(wanted, host, nfqueue=nfqueue, transparent=transparent(config))
    congestion.require(congestion_controls(config))
    return _assembly(path, store, policy, unable, host, chosen, reason)


def congestion_controls(config: Config) -> Iterator[str]:
    """Those that the configuration names."""
    wanted = config.inbound.congestion_control
    if wanted not in (congestion.AUTO, congestion.SYSTEM):
        yield wanted
    for outbound in config.outbounds.values():
        if isinstance(outbound, Socks5Outbound | DirectOutbound) and (
            outbound.congestion_control != congestion.SYSTEM
        ):
            yield outbound.congestion_control


def reassemble(old: Assembly, unable: frozenset[str]) -> Assembly:
    """The same configuration and backend for the machine, and the outbounds, as they are now.

    The file is not read: what stands there now is not in force before a reload. A server's
    name that does not resolve now means what it meant before.
    """
    host = probe_host(known=old.host.features)
    return _assembly(
        old.path,
        old.store,
        old.written,
        unable,
        host,
        old.backend,
        old.backend_reason,
        old.upstreams,
    )


def with_fresh_sets(old: Assembly) -> Assembly:
    """The same configuration on the same machine, with the rule sets as their lists are now."""
    store = old.store
    policy = compile_policy(
        old.config, store.refresh(), old.policy.geography, named_accounts(store)
    )
    return _assembly(
        old.path,
        old.store,
        policy,
        old.unable,
        old.host,
        old.backend,
        old.backend_reason,
        old.upstreams,
    )


def named_accounts(store: RuleSetStore) -> Accounts:
    """Those that rules name. Raises ``ConfigError`` for any that is not there."""
    asked = list(Subject(store.config, frozenset()).matches)
    users = accounts.users(each for _, match in asked for each in match.uid if _is_name(each))
    groups = accounts.groups(each for _, match in asked for each in match.gid if _is_name(each))
    problems: list[Problem] = []
    for path, match in asked:
        for key, names, known in (("uid", match.uid, users), ("gid", match.gid, groups)):
            for name in filter(_is_name, names):
                if name not in known:
                    what, database = {"uid": ("user", "passwd"), "gid": ("group", "group")}[key]
                    message = f"there is no {what} {name} on this machine"
                    finding = config_findings.Finding(
                        (*path, key), message, f"see `getent {database}`"
                    )
                    problems.append(store.loaded.source.problem(finding))
    if problems:
        raise ConfigError(tuple(problems))
    return Accounts(users, groups)


def _is_name(account: int | str) -> TypeGuard[str]:
    return isinstance(account, str)


def _assembly(
    path: Path,
    store: RuleSetStore,
    written: Policy,
    unable: frozenset[str],
    host: HostFacts,
    backend: Backend,
    reason: str,
    known: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> Assembly:
    """``known``: what the names of SOCKS servers meant before, by outbound."""
    config = store.config
    if config.inbound.udp == "off":
        unable = frozenset()
    else:
        unable = unable & set(config.outbounds) | _without_udp(config)
    policy = without_udp(written, unable)
    socks = {
        name: outbound
        for name, outbound in config.outbounds.items()
        if isinstance(outbound, Socks5Outbound)
    }
    meant = resolved(outbound.server for outbound in socks.values())
    upstreams = {
        name: meant[outbound.server] or known.get(name, ()) for name, outbound in socks.items()
    }
    host = replace(
        host,
        users=accounts.users(o.uid for o in socks.values() if isinstance(o.uid, str)),
        cgroups=_control_groups(config),
    )
    plan = build_plan(
        config,
        policy,
        host,
        backend,
        upstream_addresses=upstreams,
        workers=_workers(config),
    )
    return Assembly(path, config, store, written, unable, policy, host, reason, plan, upstreams)


def resolved(servers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What each server's name means now: asked for side by side, as each may take long."""
    names = tuple(dict.fromkeys(servers))
    with ThreadPoolExecutor(LOOKUPS_AT_ONCE, "resolving") as asking:
        return dict(zip(names, asking.map(resolve, names), strict=True))


def _control_groups(config: Config) -> dict[str, int]:
    """Those that proxy programs on this machine are told by, by path."""
    socks = (o for o in config.outbounds.values() if isinstance(o, Socks5Outbound))
    return accounts.control_groups(o.cgroup for o in socks if o.cgroup)


def programs_moved(assembly: Assembly, found: Iterable[Finding]) -> bool:
    """Whether programs on this machine may be others than they were, of which no event tells.

    One that was refused may have been started as whom it is said to run; a control group goes
    with its service, and is another one when that is started again.
    """
    unannounced = any(each.unannounced for each in found)
    return unannounced or _control_groups(assembly.config) != assembly.host.cgroups


def _without_udp(config: Config) -> frozenset[str]:
    """The outbounds of which it is written down that they carry no UDP."""
    unable = {
        name
        for name, outbound in config.outbounds.items()
        if isinstance(outbound, Socks5Outbound) and outbound.udp is False
    }
    return frozenset(name for name in config.outbounds if unable.issuperset(ends_of(config, name)))


def _workers(config: Config) -> int:
    """As many as configured, or one for each core we may use."""
    wanted = config.inbound.workers
    return len(os.sched_getaffinity(0)) if wanted == "auto" else wanted


def findings(assembly: Assembly) -> tuple[Finding, ...]:
    """Ask the kernel where each outbound's packets would go."""
    config = assembly.config
    return prove(assembly.ways, config.inbound.port, own_diverted=config.takes_own)


def require_loop_free(found: tuple[Finding, ...]) -> None:
    """Raise ``LoopError`` if an outbound's packets would enter the diversion."""
    loops = [finding for finding in found if finding.outcome is Outcome.LOOP]
    if loops:
        raise LoopError(
            "; ".join(f"outbound {f.egress.outbound}: {f.reason} ({f.route})" for f in loops),
            loops[0].hint,
        )


def require_apart(assembly: Assembly) -> None:
    """Raise where what we need ourselves would come to us.

    ``LoopError``: this machine would look a server up by that server. ``CapabilityError``: what
    the TUN would take is in use here.
    """
    for lookup in assembly.lookups:
        if lookup.certain:
            raise LoopError(f"outbound {lookup.outbound}: {lookup.reason}", lookup.hint)
    require_capture(assembly.config, assembly.ways, assembly.host)


def require_reloadable(old: Assembly, fresh: Assembly) -> None:
    """Raise ``GatewayError`` where flows of the old configuration would be lost by the new one."""
    if fresh.marks != old.marks:
        raise GatewayError(
            "marks.base cannot change while flows carry the old marks", "restart the gateway"
        )
    if fresh.config.inbound.tcp != old.config.inbound.tcp:
        # The rules of one way do not know the flows of the other: they would be routed on to
        # their destinations, past the proxy.
        raise GatewayError(
            "inbound.tcp cannot change while flows are diverted the old way", "restart the gateway"
        )
