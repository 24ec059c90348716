"""Which firewall carries the plan: a choice from facts, with the reason in words."""

from __future__ import annotations

from typing import Literal

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
PACKAGE_NEEDS = {
    "netfilterqueue": "apt-get install gcc python3-dev libnetfilter-queue-dev;"
    " pip install 'gateway[nfqueue]', or set inbound.classify: listener",
}


def choose_backend(
    wanted: Literal["auto", "iptables", "nftables"], facts: HostFacts, *, nfqueue: bool = False
) -> tuple[Backend, str]:
    """The backend to use, and why.

    ``auto`` takes nftables where it works, unless rules of others stand in legacy tables:
    then iptables, so that one set of tables decides about a packet, in an order that can be
    seen. ``nfqueue``: packet queues are asked for. Raises ``CapabilityError`` that names what
    is missing, with the cure.
    """
    needs = {backend: needed(backend, nfqueue=nfqueue) for backend in Backend}
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


def needed(backend: Backend, *, nfqueue: bool) -> dict[str, str]:
    """The features that a backend needs, and the cure for each."""
    if not nfqueue:
        return NEEDS[backend]
    return NEEDS[backend] | QUEUE_NEEDS[backend] | PACKAGE_NEEDS


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
