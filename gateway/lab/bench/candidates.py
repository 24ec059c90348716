"""What a benchmark compares: this gateway, the kernel alone, and other proxies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from gateway.lab import peers
from gateway.lab.lab import Lab
from gateway.lab.peers import Peer, Upstream
from gateway.lab.process import Process

#: The SOCKS5 server, and the host that clients ask for, by their names in the topology.
UPSTREAM: Final = "home"
TARGET: Final = "web"

#: Something asks for the state of a connection, so the kernel tracks all: any router that
#: translates addresses, or lets in answers only, has this.
_TRACKED: Final = """
table inet tracked {
    chain forward {
        type filter hook forward priority filter
        ct state established,related accept
    }
}
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What may stand between client and server.

    ``start`` puts it on the lab's router, and returns its process; None for the kernel alone.
    ``way``: how its flows reach the target. A ``peer`` that fails is left out of the report.
    """

    name: str
    start: Callable[[Lab], Process | None]
    way: Literal["direct", "socks"] = "socks"
    peer: bool = False


def forwarding(*, tracked: bool = False) -> Candidate:
    """The kernel's own forwarding: no proxy, no SOCKS server; the most there is to have.

    ``tracked``: with connection tracking.
    """

    def start(lab: Lab) -> None:
        lab.router.sysctl("net.ipv4.ip_forward", "1")
        lab.router.sysctl("net.ipv6.conf.all.forwarding", "1")
        if tracked:
            lab.router.run(["nft", "-f", "-"], stdin=_TRACKED)

    return Candidate("tracked forwarding" if tracked else "forwarding", start, "direct")


def this_gateway(
    mode: Literal["tproxy", "redirect", "tun"] = "tproxy",
    handshake: Literal["auto", "pipelined", "strict"] = "auto",
    pool: Literal["auto", "off"] = "auto",
    workers: int | None = None,
) -> Candidate:
    """The gateway itself, named after what differs from the defaults."""

    def start(lab: Lab) -> Process:
        config = gateway_config(lab, workers, handshake=handshake, pool=pool)
        return lab.start_gateway(config, mode=mode).process

    differs: list[str] = [one for one in (mode, handshake) if one not in ("tproxy", "auto")]
    if pool == "off":
        differs.append("no pool")
    if workers is not None:
        differs.append(f"{workers} {'worker' if workers == 1 else 'workers'}")
    return Candidate(f"gateway ({', '.join(differs)})" if differs else "gateway", start)


def gateway_config(
    lab: Lab,
    workers: int | None = None,
    *,
    handshake: Literal["auto", "pipelined", "strict"] = "auto",
    pool: Literal["auto", "off"] = "auto",
) -> dict[str, Any]:
    """All flows go to one SOCKS5 server; what is wrong is logged and no more, as by its peers."""
    outbound = {**lab.socks(UPSTREAM), "handshake": handshake, "pool": pool}
    config = lab.config({"to": UPSTREAM}, outbounds={UPSTREAM: outbound})
    if workers is not None:
        config["inbound"] = {"workers": workers}
    return {**config, "log": {"level": "warning"}}


def routed(
    backend: Literal["nftables", "iptables"], mode: Literal["tproxy", "redirect"] = "tproxy"
) -> Candidate:
    """The gateway where an address rule sends the flows direct: the kernel routes them."""

    def start(lab: Lab) -> Process:
        rules = ({"destination": list(lab.topology.targets[TARGET]), "to": "direct"},)
        config = {**lab.config(*rules, {"to": UPSTREAM}), "log": {"level": "warning"}}
        lab.router.sysctl("net.ipv4.ip_forward", "1")
        lab.router.sysctl("net.ipv6.conf.all.forwarding", "1")
        return lab.start_gateway(config, backend=backend, mode=mode).process

    name = backend if mode == "tproxy" else f"{backend}, {mode}"
    return Candidate(f"gateway ({name})", start, "direct")


def other(peer: Peer) -> Candidate:
    """Another proxy."""

    def start(lab: Lab) -> Process:
        directory = lab.directory / "peer"
        directory.mkdir()
        settings = lab.topology.upstreams[UPSTREAM]
        return peer.start(lab.router, Upstream(settings.addresses.ipv4, settings.port), directory)

    return Candidate(peer.name, start, peer=True)


def others() -> tuple[Candidate, ...]:
    """All peers that this machine has."""
    return tuple(map(other, peers.installed()))
