"""Checks of the TUN: the device, and what it takes, across the keys of a configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_network

from gateway.config.findings import Finding
from gateway.config.outbounds import Socks5Outbound
from gateway.config.subject import Subject, overlap
from gateway.config.values import Network
from gateway.flow import Protocol


def _device(subject: Subject) -> Iterator[Finding]:
    """What the device is called, and its own networks, are nobody else's."""
    tun, lan = subject.config.tun, subject.config.lan
    if not subject.config.inbound.tunnelled:
        return
    if tun.name in lan.interfaces:
        yield Finding(("tun", "name"), "an interface of the LAN", "choose a name that nobody has")
    for key, own in (("ipv4", tun.ipv4.network), ("ipv6", tun.ipv6.network)):
        for name, networks in lan.subnets.items():
            if any(overlap(own, network) for network in networks):
                cure = "choose a network that nobody else uses"
                yield Finding(("tun", key), f"{own} overlaps the subnet {name}", cure)


def _capture_keys(subject: Subject) -> Iterator[Finding]:
    """Keys that mean something only beside others."""
    tun = subject.config.tun
    if tun.prefixes and tun.capture != "prefixes":
        yield Finding(
            ("tun", "prefixes"),
            f"means nothing with capture: {tun.capture}",
            "remove it, or write `capture: prefixes`",
            at="key",
        )
    if tun.capture == "prefixes" and not tun.prefixes:
        yield Finding(("tun", "capture"), "no prefix is written down", "list them in `prefixes:`")
    if tun.strategy != "suppress" and tun.capture != "default-route":
        yield Finding(
            ("tun", "strategy"),
            f"means nothing with capture: {tun.capture}",
            "remove it, or write `capture: default-route`",
        )
    if tun.strategy == "split_default" and subject.config.inbound.on_failure == "closed":
        yield Finding(
            ("tun", "strategy"),
            "a half of the main table that refuses would refuse our own sockets, too",
            "write `on_failure: open`, or `strategy: suppress`",
        )


def _inbound_keys(subject: Subject) -> Iterator[Finding]:
    """Routes know no protocols, no packet queues, and not who sends."""
    tun, inbound = subject.config.tun, subject.config.inbound
    if not tun.by_routing:
        return
    for protocol in Protocol:
        if protocol not in inbound.tunnelled:
            yield Finding(
                ("inbound", protocol.value),
                f"{tun.capture} is taken by routes, whatever the protocol",
                f"write `{protocol}: tun`, or `tun.capture: lan`",
            )
    if inbound.classify == "nfqueue":
        yield Finding(
            ("inbound", "classify"),
            "what routes take comes by no packet queue",
            "use `classify: listener`, or `tun.capture: lan`",
        )
    if inbound.on_failure_of:
        yield Finding(
            ("inbound", "on_failure_of"),
            "routes do not know who sends",
            "use one `on_failure` for all, or `tun.capture: lan`",
            at="key",
        )


def _networks(subject: Subject) -> Iterator[Finding]:
    """Prefixes that can be taken, and fake ones that nobody has."""
    tun = subject.config.tun
    for index, prefix in enumerate(tun.prefixes):
        if prefix.prefixlen == 0:
            yield Finding(
                ("tun", "prefixes", index), "is everything", "write `capture: default-route`"
            )
        elif prefix.is_multicast or prefix.is_loopback or prefix.is_link_local:
            yield Finding(("tun", "prefixes", index), "nothing of it can be routed", "remove it")
    if len({pool.version for pool in tun.fake_ip}) != len(tun.fake_ip):
        yield Finding(("tun", "fake_ip"), "two pools of one family", "keep one for each")
    if tun.capture != "fake-ip":
        return
    for index, pool in enumerate(tun.fake_ip):
        for what, network in _real(subject):
            if overlap(pool, network):
                yield Finding(
                    ("tun", "fake_ip", index),
                    f"overlaps {what} ({network}): fake addresses may be nobody's",
                    "choose a range that nobody uses, such as 198.18.0.0/15",
                )


def _real(subject: Subject) -> Iterator[tuple[str, Network]]:
    """What is known to be in use."""
    config = subject.config
    for name, networks in config.lan.subnets.items():
        for network in networks:
            yield f"the subnet {name}", network
    for name, outbound in config.outbounds.items():
        if isinstance(outbound, Socks5Outbound):
            with suppress(ValueError):
                yield f"the server of outbound {name}", ip_network(outbound.server)


def _programs(subject: Subject) -> Iterator[Finding]:
    """A route knows users, and no control groups (ip-rule(8)); of halves, nobody is led past."""
    config = subject.config
    if not config.tun.by_routing:
        return
    for name, outbound in config.outbounds.items():
        if not isinstance(outbound, Socks5Outbound):
            continue
        if outbound.uid is not None and config.tun.strategy == "split_default":
            yield Finding(
                ("outbounds", name, "uid"),
                "the program uses the main table, of which split_default takes both halves",
                "write `strategy: suppress`, or run it in a network namespace (`netns:`)",
            )
        if outbound.cgroup is not None:
            yield Finding(
                ("outbounds", name, "cgroup"),
                "what routes take is told by users alone, not by control groups",
                "say in `uid:` which user the program runs as",
            )


TUN_CHECKS = (_device, _capture_keys, _inbound_keys, _networks, _programs)
