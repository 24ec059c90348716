"""Which firewall carries the plan: a choice from facts, with the reason in words."""

from __future__ import annotations

from typing import Literal

from gateway.config.outbounds import DirectOutbound
from gateway.config.schema import Config
from gateway.errors import CapabilityError
from gateway.plan.host import HostFacts
from gateway.plan.model import Backend

#: What each backend cannot do without: the feature, and the cure where it is missing.
NEEDS = {
    Backend.NFTABLES: {
        "nftables": "apt-get install nftables (and CONFIG_NF_TABLES in the kernel)",
        "nft-fib": "modprobe nft_fib_inet",
        "nft-socket": "modprobe nft_socket",
        "nft-tproxy": "modprobe nft_tproxy",
    },
    Backend.IPTABLES: {
        "iptables": "apt-get install iptables gcc python3-dev; pip install 'gateway[iptables]'",
        "iptables-tproxy": "modprobe xt_TPROXY xt_socket",
        "ipset": "apt-get install ipset (and modprobe ip_set_hash_net xt_set)",
    },
}
#: What packet queues (``inbound.classify: nfqueue``) take besides.
QUEUE_NEEDS = {
    Backend.NFTABLES: {
        "nft-queue": "modprobe nft_queue, or set inbound.backend: iptables",
    },
    Backend.IPTABLES: {
        "iptables-nfqueue": "modprobe xt_NFQUEUE",
    },
}
#: What nobody misses where no packet reaches a transparent socket.
_TRANSPARENT = frozenset({"nft-socket", "nft-tproxy", "iptables-tproxy"})
PACKAGE_NEEDS = {
    "netfilterqueue": "apt-get install gcc python3-dev libnetfilter-queue-dev;"
    " pip install 'gateway[nfqueue]', or set inbound.classify: listener",
}


def choose_backend(
    wanted: Literal["auto", "iptables", "nftables"],
    facts: HostFacts,
    *,
    nfqueue: bool = False,
    transparent: bool = True,
) -> tuple[Backend, str]:
    """The backend to use, and why.

    ``auto`` takes nftables where it works, unless rules of others stand in legacy tables:
    then iptables, so that one set of tables decides about a packet, in an order that can be
    seen. ``nfqueue``: packet queues are asked for. ``transparent``: as of ``needed``. Raises
    ``CapabilityError`` that names what is missing, with the cure.
    """
    if not facts.privileged:
        raise CapabilityError(
            "what this kernel's firewalls can do, only root is told",
            hint="use sudo, or give this service or container CAP_NET_ADMIN and CAP_NET_RAW",
        )
    needs = {
        backend: needed(backend, nfqueue=nfqueue, transparent=transparent) for backend in Backend
    }
    if wanted != "auto":
        _require(Backend(wanted), needs[Backend(wanted)], facts)
        return Backend(wanted), "the configuration says so"
    nftables = _missing(needs[Backend.NFTABLES], facts)
    iptables = _missing(needs[Backend.IPTABLES], facts)
    if nftables and iptables:
        _require(Backend.NFTABLES, needs[Backend.NFTABLES], facts)
    if nftables:
        return Backend.IPTABLES, f"nftables cannot be used here: {_evidence(nftables, facts)}"
    if not facts.has("legacy-rules"):
        return Backend.NFTABLES, "nftables works, and no legacy iptables rules are in its way"
    present = f"legacy iptables rules are present ({facts.features['legacy-rules'].detail})"
    if iptables:
        cannot = _evidence(iptables, facts)
        return Backend.NFTABLES, f"{present}, but iptables cannot be used here: {cannot}"
    return Backend.IPTABLES, present


def transparent(config: Config) -> bool:
    """Whether a configuration has packets handed to transparent sockets.

    By TPROXY, or as answers to a source that an outbound has preserved.
    """
    preserved = (
        isinstance(outbound, DirectOutbound) and outbound.preserve_source
        for outbound in config.outbounds.values()
    )
    return "tproxy" in (config.inbound.tcp, config.inbound.udp) or any(preserved)


def needed(backend: Backend, *, nfqueue: bool, transparent: bool = True) -> dict[str, str]:
    """The features that a backend needs, and the cure for each."""
    needs = NEEDS[backend]
    if not transparent:
        needs = {name: cure for name, cure in needs.items() if name not in _TRANSPARENT}
    return needs | QUEUE_NEEDS[backend] | PACKAGE_NEEDS if nfqueue else needs


def _missing(needs: dict[str, str], facts: HostFacts) -> list[str]:
    return [feature for feature in needs if not facts.has(feature)]


def _evidence(features: list[str], facts: HostFacts) -> str:
    found = (facts.features.get(feature) for feature in features)
    return "; ".join(
        f"{feature}: {fact.detail if fact else 'not looked for'}"
        for feature, fact in zip(features, found, strict=True)
    )


def _require(backend: Backend, needs: dict[str, str], facts: HostFacts) -> None:
    missing = _missing(needs, facts)
    if missing:
        raise CapabilityError(
            f"{backend} cannot be used here: {_evidence(missing, facts)}",
            hint="; ".join(needs[feature] for feature in missing),
        )
