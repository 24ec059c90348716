"""From a configuration file to all that a check, a plan or a run needs.

Reads the file, the machine and, for upstreams given by name, the resolver; then
only computes. Call from a thread without an event loop.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Literal

from gateway.config.load import load
from gateway.config.schema import Config, DirectOutbound, Socks5Outbound
from gateway.decision import DIRECT, REJECT
from gateway.errors import LoopError
from gateway.kernel.guard import Egress, Finding, Outcome, prove
from gateway.kernel.probe import probe_host
from gateway.kernel.sockets import resolve
from gateway.marks import Mark, Marks
from gateway.plan.backend import choose_backend
from gateway.plan.build import build_plan
from gateway.plan.host import HostFacts
from gateway.plan.model import Backend, Plan
from gateway.policy.compile import compile_policy
from gateway.policy.engine import Policy
from gateway.rulesets.store import load_rule_sets

#: Where the guard looks for an outbound that goes anywhere: documentation addresses, which are
#: routed as the rest of the Internet is (RFC 5737, RFC 3849). Looked up, never sent to.
ANYWHERE: Final = ("192.0.2.1", "2001:db8::1")


@dataclass(frozen=True, slots=True)
class Assembly:
    """One configuration, compiled for this machine.

    ``upstreams``: addresses of each SOCKS server, by outbound; empty for a name that does
    not resolve now.
    """

    path: Path
    config: Config
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
        """How many processes carry flows: as configured, or one for each core we may use."""
        wanted = self.config.inbound.workers
        return len(os.sched_getaffinity(0)) if wanted == "auto" else wanted

    @property
    def marks(self) -> Marks:
        """The bits of the packet mark that this configuration gives us."""
        return Marks(self.config.marks.base)


def assemble(
    path: Path, backend: Literal["auto", "iptables", "nftables"] | None = None
) -> Assembly:
    """Read and compile a configuration; ``backend`` overrides what it says.

    Raises ``ConfigError`` for the file, ``CapabilityError`` for the machine.
    """
    loaded = load(path)
    config = loaded.config
    policy = compile_policy(config, load_rule_sets(loaded))
    wanted = backend or config.inbound.backend
    host = probe_host(wanted)
    chosen, reason = choose_backend(wanted, host)
    return _assembly(path, config, policy, host, chosen, reason)


def reassemble(old: Assembly) -> Assembly:
    """The same configuration and backend for the machine as it is now.

    The file is not read: what stands there now is not in force before a reload.
    """
    host = probe_host(old.backend.value)
    return _assembly(old.path, old.config, old.policy, host, old.backend, old.backend_reason)


def _assembly(
    path: Path, config: Config, policy: Policy, host: HostFacts, backend: Backend, reason: str
) -> Assembly:
    upstreams = {
        name: resolve(outbound.server)
        for name, outbound in config.outbounds.items()
        if isinstance(outbound, Socks5Outbound)
    }
    plan = build_plan(config, policy, host, backend, upstream_addresses=upstreams)
    return Assembly(path, config, policy, host, reason, plan, upstreams)


def findings(assembly: Assembly) -> tuple[Finding, ...]:
    """Ask the kernel where each outbound's packets would go."""
    return prove(egresses(assembly), assembly.config.inbound.port)


def require_loop_free(found: tuple[Finding, ...]) -> None:
    """Raise ``LoopError`` if an outbound's packets would enter the diversion."""
    loops = [finding for finding in found if finding.outcome is Outcome.LOOP]
    if loops:
        raise LoopError(
            "; ".join(f"outbound {f.egress.outbound}: {f.reason} ({f.route})" for f in loops),
            loops[0].hint,
        )


def egresses(assembly: Assembly) -> Iterator[Egress]:
    """Every way out that the guard must prove, in the order of the file."""
    mark = assembly.marks.bypass
    for name in (DIRECT, *assembly.config.outbounds):
        outbound = assembly.config.outbound(name)
        if isinstance(outbound, Socks5Outbound):
            for address in assembly.upstreams[name]:
                device = device_for(outbound, address, assembly.host)
                yield Egress(name, address, mark, device, port=outbound.port)
        elif isinstance(outbound, DirectOutbound) and name != REJECT:
            yield from _direct_egresses(name, outbound, mark)


def _direct_egresses(name: str, outbound: DirectOutbound, mark: Mark) -> Iterator[Egress]:
    device = outbound.interface if outbound.route != "mark" else None
    source = None if outbound.source is None else str(outbound.source)
    for destination in ANYWHERE:
        if source is None or (":" in source) == (":" in destination):
            yield Egress(name, destination, mark, device, source)


def device_for(outbound: Socks5Outbound, address: str, host: HostFacts) -> str | None:
    """The device to bind to: ``auto`` binds to none for a server on this machine.

    A socket that is bound to an uplink cannot reach a loopback or own address: its SYN
    leaves by the wire.
    """
    if outbound.route == "mark":
        return None
    here = ip_address(address).is_loopback or address in host.addresses
    return None if outbound.route == "auto" and here else outbound.interface
