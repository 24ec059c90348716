from __future__ import annotations

from typing import Any

import pytest

from gateway.config.schema import Config
from gateway.errors import CapabilityError
from gateway.plan.backend import choose_backend, transparent
from gateway.plan.host import Feature, HostFacts
from gateway.plan.model import Backend

NFTABLES = ("nftables", "nft-tproxy", "nft-socket", "nft-fib")
IPTABLES = ("iptables", "iptables-tproxy", "ipset")


def facts(*available: str) -> HostFacts:
    names = (*NFTABLES, *IPTABLES, "legacy-rules")
    return HostFacts(features={n: Feature(n in available, f"{n} was tried") for n in names})


@pytest.mark.parametrize(
    ("available", "chosen", "because"),
    [
        ((*NFTABLES, *IPTABLES), Backend.NFTABLES, "no legacy iptables rules"),
        (NFTABLES, Backend.NFTABLES, "no legacy iptables rules"),
        (IPTABLES, Backend.IPTABLES, "nftables cannot be used here: nftables: nftables was tried"),
        ((*NFTABLES[:1], *IPTABLES), Backend.IPTABLES, "nft-tproxy was tried"),
        ((*NFTABLES, *IPTABLES, "legacy-rules"), Backend.IPTABLES, "legacy-rules was tried"),
        ((*NFTABLES, "legacy-rules"), Backend.NFTABLES, "iptables cannot be used here"),
    ],
)
def test_auto(available: tuple[str, ...], chosen: Backend, because: str) -> None:
    backend, reason = choose_backend("auto", facts(*available))
    assert backend is chosen
    assert because in reason


def test_what_the_configuration_says_is_taken_where_it_works() -> None:
    everything = facts(*NFTABLES, *IPTABLES, "legacy-rules")
    assert choose_backend("nftables", everything)[0] is Backend.NFTABLES
    assert choose_backend("iptables", everything)[0] is Backend.IPTABLES


@pytest.mark.parametrize(
    ("wanted", "available", "missing", "cure"),
    [
        ("nftables", NFTABLES[:1], "nft-tproxy was tried", "modprobe nft_tproxy"),
        ("iptables", IPTABLES[:2], "ipset was tried", "apt-get install ipset"),
        ("iptables", (), "iptables was tried", "pip install"),
        ("auto", (), "nftables was tried", "apt-get install nftables"),
    ],
)
def test_an_error_names_what_is_missing_and_the_cure(
    wanted: str, available: tuple[str, ...], missing: str, cure: str
) -> None:
    with pytest.raises(CapabilityError, match=missing) as caught:
        choose_backend(wanted, facts(*available))  # type: ignore[arg-type]
    assert cure in caught.value.hint


def test_a_feature_that_was_not_looked_for_is_missing() -> None:
    with pytest.raises(CapabilityError, match="ipset: not looked for"):
        choose_backend("iptables", HostFacts())


def test_what_hands_packets_to_no_transparent_socket_needs_no_tproxy() -> None:
    """Kernels without it are what REDIRECT and the TUN are for."""
    without = facts("nftables", "nft-fib")
    with pytest.raises(CapabilityError, match="nft-tproxy"):
        choose_backend("nftables", without)
    assert choose_backend("nftables", without, transparent=False)[0] is Backend.NFTABLES


@pytest.mark.parametrize(
    ("inbound", "preserved", "wanted"),
    [
        ({}, False, True),
        ({"tcp": "tun"}, False, True),
        ({"tcp": "tun", "udp": "off"}, False, False),
        ({"tcp": "redirect", "udp": "off"}, False, False),
        ({"tcp": "tun", "udp": "off"}, True, True),
    ],
)
def test_who_does(inbound: dict[str, str], preserved: bool, wanted: bool) -> None:
    config = Config.model_validate(
        {
            "lan": {"interfaces": ["lan0"]},
            "inbound": inbound,
            "outbounds": {"out": {"type": "direct", "preserve_source": preserved}},
            "rules": [{"to": "out"}],
        }
    )
    assert transparent(config) is wanted


@pytest.mark.parametrize("wanted", ["auto", "iptables", "nftables"])
def test_who_may_not_ask_is_not_told_to_install_what_may_be_there(wanted: Any) -> None:
    with pytest.raises(CapabilityError) as caught:
        choose_backend(wanted, HostFacts(privileged=False))
    assert "sudo" in caught.value.hint
    assert "apt-get" not in caught.value.hint
