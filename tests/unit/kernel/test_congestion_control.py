"""Congestion control by name: what is asked for, and what the kernel has."""

from __future__ import annotations

import pytest

from gateway.errors import CapabilityError
from gateway.kernel import congestion


@pytest.mark.parametrize(
    ("wanted", "system", "chosen"),
    [
        ("auto", "cubic", None),
        ("auto", None, None),
        ("system", "bbr", None),
        ("auto", "bbr", "reno"),
        ("cubic", "bbr", "cubic"),
    ],
)
def test_towards_the_lan(wanted: str, system: str | None, chosen: str | None) -> None:
    assert congestion.for_lan(wanted, system) == chosen


def test_towards_a_server_the_system_decides_unless_told() -> None:
    assert congestion.for_outbound("system") is None
    assert congestion.for_outbound("reno") == "reno"


def test_what_the_kernel_does_not_have_is_refused() -> None:
    congestion.require(["reno"])
    with pytest.raises(CapabilityError, match="nonesuch") as refused:
        congestion.require(["reno", "nonesuch"])
    assert "modprobe tcp_nonesuch" in refused.value.hint
