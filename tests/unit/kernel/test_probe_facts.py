"""What of the machine is looked for, and what is not."""

from __future__ import annotations

import pytest

from gateway.kernel import probe
from gateway.plan.host import Feature


@pytest.fixture(autouse=True)
def _firewalls_are_left_alone(monkeypatch):
    def refuse(*_arguments, **_options):
        raise AssertionError("asked")

    monkeypatch.setattr(probe, "_firewalls", refuse)


def test_features_that_are_known_are_not_looked_for_again():
    """With iptables that takes a second of CPU, at each change of the network."""
    known = {"nftables": Feature(True, "seen before"), "ipv6": Feature(False, "not yet")}
    facts = probe.probe_host(known=known)
    assert facts.features["nftables"].detail == "seen before"
    assert facts.features["ipv6"].detail != "not yet"
    assert {link.name for link in facts.interfaces} >= {"lo"}


def test_without_the_privilege_there_is_nothing_to_be_told(monkeypatch):
    monkeypatch.setattr(probe, "has", lambda _capability: False)
    facts = probe.probe_host()
    assert set(facts.features) == {"ipv6"}
    assert not facts.privileged
